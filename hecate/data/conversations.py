"""Records as conversations: lists of turns, or fields that are mapped to turns. Pure.

A record of turns is ``{"messages": [{"role": "user", "content": "..."}, ...]}``, or the same under
``conversations`` with ``from`` and ``value`` (ShareGPT). Whatever would silently be left out of
training, such as a tool call, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hecate.data.records import Message, Record, encodable, shown_fields
from hecate.errors import DataError

ASSISTANT = "assistant"
ROLES = ("system", "user", ASSISTANT)

_LISTS = ("messages", "conversations")
_SHAREGPT = {"human": "user", "gpt": ASSISTANT}
_UNREAD = ("tool_calls", "function_call", "weight")
_EXAMPLE = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}'


@dataclass(frozen=True)
class ChatForm:
    """Conversations; ``system_text`` opens those that bring no system turn.

    ``user``, ``assistant`` and ``system`` name the fields of records that are not lists of turns
    ("": none; without the first two, records are lists of turns).
    """

    user: str = ""
    assistant: str = ""
    system: str = ""
    system_text: str = ""

    @property
    def _mapping(self) -> dict[str, str]:
        fields = {"system": self.system, "user": self.user, ASSISTANT: self.assistant}
        return {role: name for role, name in fields.items() if name}

    def fields(self, found: Sequence[str], where: str) -> Sequence[str]:
        wanted = list(self._mapping.values()) or [name for name in _LISTS if name in found][:1]
        missing = [name for name in wanted if name not in found]
        if wanted and not missing:
            return wanted
        if missing:
            raise DataError(
                f"{where} has no field {missing[0]!r}",
                got=shown_fields(found),
                expected="the fields that data.chat.fields names: " + ", ".join(map(repr, wanted)),
                fix="set data.chat.fields to those that hold the question and the answer",
            )
        raise DataError(
            f"{where} is not a conversation",
            got=shown_fields(found),
            expected=_EXAMPLE,
            fix="map its fields: data.chat.fields: {user: question, assistant: answer}",
        )

    def record(self, values: Mapping[str, object], where: str, source_bytes: int) -> Record:
        mapping = self._mapping
        if mapping:
            messages = [
                Message(role, _content(values[name], f"{where}: field {name!r}"))
                for role, name in mapping.items()
            ]
        else:
            (name,) = self.fields(list(values), where)
            messages = _turns(values[name], name, where)
        if self.system_text and messages[0].role != "system":
            messages.insert(0, Message("system", self.system_text))
        if all(message.role != ASSISTANT for message in messages):
            raise DataError(
                f"{where}: the assistant says nothing",
                got="turns of " + ", ".join(message.role for message in messages),
                expected="at least one turn of the assistant: that is what is learnt",
                fix="add the answer, or drop that record",
            )
        text = encodable("\n".join(message.content for message in messages), where)
        return Record(text, where, source_bytes, tuple(messages))


def _turns(turns: object, name: str, where: str) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f"{where}: {name!r} is no list of turns",
            got="an empty list" if turns == [] else _kind(turns),
            expected=_EXAMPLE,
            fix="mend or drop that record",
        )
    return [_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(turns, start=1)]


def _turn(turn: object, where: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(
            f"{where} is not an object",
            got=_kind(turn),
            expected='{"role": "user", "content": "..."}',
            fix="mend or drop that record",
        )
    for name in _UNREAD:
        if turn.get(name) not in (None, [], 1):
            raise DataError(
                f"{where} holds {name!r}, which is not trained on",
                got=f"{name}: {str(turn[name])[:60]}",
                expected="a turn of role and content alone",
                fix=f"drop that record, or take {name!r} out of it",
            )
    said = turn.get("role", turn.get("from"))
    role = _SHAREGPT.get(said, said) if isinstance(said, str) else said
    if role not in ROLES:
        raise DataError(
            f"{where} has no role that is known",
            got="no role" if said is None else f"role {said!r}",
            expected="one of " + ", ".join(ROLES) + " (or ShareGPT's human and gpt)",
            fix="rename the role, or drop that record",
        )
    return Message(role, _content(turn.get("content", turn.get("value")), where))


def _content(value: object, where: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    raise DataError(
        f"{where} says nothing" if isinstance(value, str) else f"{where} is not text",
        got="white space alone" if isinstance(value, str) and value else _kind(value),
        expected="a string with something in it",
        fix="drop that record, or write what is said there",
    )


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    return "an empty string" if value == "" else type(value).__name__
