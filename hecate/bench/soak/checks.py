"""A reply beside what was asked: right, refused for a reason, or wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hecate.bench.soak.meaning import GONE

Kind = Literal["answered", "refused", "failed", "left", "wrong", "unclear", "hung"]
SERVER_FAILED = 500
NOT_NOW = frozenset({429, 503})
"""What any request may be told at any time: too much is waiting, or its replica was lost."""


@dataclass(frozen=True)
class Verdict:
    """``answered``: right; ``refused``: told why, by a 4xx; ``failed``: told that its replica was
    lost; ``left``: by its client. The others are faults, and ``why`` says what of."""

    kind: Kind
    why: str = ""


@dataclass(frozen=True)
class Reply:
    """What came over the wire. ``value``: the body as JSON, None where it is none; ``events``: of a
    stream, and ``ended`` whether ``[DONE]`` came."""

    status: int
    value: Any = None
    retry_after: str = ""
    events: tuple[Any, ...] = ()
    ended: bool = False
    streamed: bool = False


@dataclass
class Choice:
    """One choice of an answer, put together."""

    text: str = ""
    finish: str = ""
    fault: str = ""
    tokens: int = 0  # that came with logprobs


Check = Callable[[Sequence[Choice], Collection[str]], str]
"""Choices, and contents of the adapter that they may be of -> what is wrong, "" if nothing."""


@dataclass(frozen=True)
class Wanted:
    """``check``: of an answer, where there is to be one; ``n``: of how many choices; ``statuses``:
    of the refusals that there may be; ``usage``: whether a stream ends with it."""

    check: Check | None = None
    n: int = 1
    statuses: frozenset[int] = frozenset()
    usage: bool = False
    chat: bool = False
    whole: Callable[[Any], str] | None = field(default=None)
    """Of what is no choices: the JSON value -> what is wrong."""


def judge(reply: Reply, wanted: Wanted, contents: Collection[str]) -> Verdict:
    """``contents``: what the adapter that was asked for may have meant; ``GONE`` among them where
    it may have been unloaded."""
    if reply.status != 200:
        return _refusal(reply, wanted, contents)
    if wanted.check is None and wanted.whole is None:
        return Verdict("unclear", "it was answered, where it was to be refused")
    if wanted.whole is not None:
        why = wanted.whole(reply.value)
        return Verdict("wrong", why) if why else Verdict("answered")
    events = reply.events if reply.streamed else (reply.value,)
    for event in events:
        if not isinstance(event, Mapping):
            return Verdict("unclear", f"no JSON object: {event!r:.80}")
        if "error" in event:
            fault = error_fault(event)
            return Verdict("unclear", fault) if fault else Verdict("failed", _message(event))
    if reply.streamed and not reply.ended:
        return Verdict("unclear", "a stream broke off without an error")
    choices = put_together(events, wanted)
    if reply.streamed and wanted.usage and not events[-1].get("usage"):
        return Verdict("wrong", "no usage at the end")
    for choice in choices:
        if choice.fault or not choice.finish:
            return Verdict("wrong", choice.fault or "a choice without an end")
    assert wanted.check is not None
    why = wanted.check(choices, [each for each in contents if each != GONE])
    return Verdict("wrong", why) if why else Verdict("answered")


def put_together(events: Sequence[Mapping[str, Any]], wanted: Wanted) -> list[Choice]:
    """The choices of a stream's chunks, or of an answer at once, which is the only event."""
    choices = [Choice() for _ in range(wanted.n)]
    for event in events:
        for part in event.get("choices", ()):
            if not 0 <= part["index"] < wanted.n:
                choices[0].fault = f"choice {part['index']} of {wanted.n}"
                continue
            choice = choices[part["index"]]
            if choice.finish:
                choice.fault = "more of a choice after its end"
            message = part.get("delta") or part.get("message") or {}
            choice.text += (message.get("content") if wanted.chat else part.get("text")) or ""
            choice.finish = part.get("finish_reason") or ""
            if logprobs := part.get("logprobs"):
                choice.tokens += len(logprobs.get("content") or logprobs.get("tokens") or ())
    return choices


def error_fault(value: Any, status: int = 0, retry_after: str = "") -> str:
    """What OpenAI's clients would miss in an error; "" where nothing."""
    error = value.get("error") if isinstance(value, Mapping) else None
    if not isinstance(error, Mapping):
        return f"an error without OpenAI's shape: {json.dumps(value)[:80]}"
    if missing := {"message", "type", "param", "code"} - set(error):
        return f"an error without {', '.join(sorted(missing))}"
    if not (isinstance(error["message"], str) and error["message"] and error["type"]):
        return "an error that says nothing"
    if status == 429 and not (retry_after.isdigit() and int(retry_after) >= 1):
        return f"429 with Retry-After {retry_after!r}"
    return ""


def _refusal(reply: Reply, wanted: Wanted, contents: Collection[str]) -> Verdict:
    if fault := error_fault(reply.value, reply.status, reply.retry_after):
        return Verdict("unclear", f"{reply.status}: {fault}")
    told = f"{reply.status}: {_message(reply.value)}"
    if reply.status == 503:
        return Verdict("failed", told)
    if reply.status in wanted.statuses | NOT_NOW or (reply.status == 404 and GONE in contents):
        return Verdict("refused", told)
    return Verdict("unclear", told)


def _message(value: Mapping[str, Any]) -> str:
    return str(value["error"]["message"])[:160]
