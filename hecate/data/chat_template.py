"""Conversations as tokens, by the model's own chat template, and which of them the assistant says.

A template that marks what the assistant says (``{% generation %}``) is taken at its word. Of
another, each conversation is rendered up to each turn of the assistant, with the prompt that asks
for it, and up to its end: what the second adds to the first is what the assistant says. That holds
only where both are beginnings of the whole; where they are not, the template is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hecate.data.conversations import ASSISTANT
from hecate.data.records import Record
from hecate.errors import DataError, TokenizerError

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_MARK_IT = (
    "set data.chat.template to one that encloses what the assistant says in "
    "{% generation %} and {% endgeneration %}"
)


@dataclass(frozen=True)
class EncodedChat:
    """The tokens of a conversation, and which of them are learnt: bool ``[T]``."""

    token_ids: list[int]
    targets_T: NDArray[np.bool_]


def read_template(template: str) -> str:
    """The template that ``data.chat.template`` gives or names. Raises ``TokenizerError``."""
    if "{{" in template or "{%" in template:
        return template
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(
            f"cannot read data.chat.template {template}",
            got=str(error),
            expected="a file that holds a Jinja chat template, or the template itself",
            fix="correct its path; it is taken from the folder that the command runs in",
        ) from error


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template of ``tokenizer``. Raises ``TokenizerError`` where there is none."""
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise TokenizerError(
            "the tokenizer has no chat template",
            got=f"none, or none by the name of default, in {tokenizer.name_or_path}",
            expected="a chat_template in its folder, as the tokenizers of instruct models have",
            fix="set data.chat.template to a file of one, such as configs/chat/plain.jinja, or "
            "data.tokenizer.path to the folder of a model that was trained on chat",
        ) from error
    assert isinstance(template, str)
    return template


class ChatTemplate:
    """A tokenizer's template at work on conversations."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises ``TokenizerError`` for a tokenizer that lacks a template, or offsets."""
        self._tokenizer = tokenizer
        self._marked = _MARKS.search(template_of(tokenizer)) is not None
        if not tokenizer.is_fast:
            raise TokenizerError(
                "the tokenizer does not say which characters a token stands for",
                got=type(tokenizer).__name__,
                expected="one that is backed by tokenizer.json",
                fix="convert it to a fast tokenizer (AutoTokenizer, then save_pretrained)",
            )

    def encode(self, records: Sequence[Record]) -> list[EncodedChat]:
        """Each conversation's tokens and targets.

        Raises ``DataError`` for a conversation that the template refuses, and ``TokenizerError``
        for a template that does not tell what the assistant says.
        """
        chats = self._by_marks(records) if self._marked else self._by_prefixes(records)
        for record, chat in zip(records, chats, strict=True):
            chat.targets_T[:1] = False  # nothing predicts the first token
            if not chat.targets_T.any():
                raise TokenizerError(
                    f"{record.where}: the chat template leaves nothing of the assistant to learn",
                    got=f"{len(chat.token_ids)} tokens, none of them the assistant's",
                    expected="the turns of the assistant among what it renders",
                    fix=_MARK_IT,
                )
        return chats

    def _by_marks(self, records: Sequence[Record]) -> list[EncodedChat]:
        try:
            return self._marked_by_template(records)
        except Exception:
            for record in records:  # one of them: which?
                with _refusals(record):
                    self._marked_by_template([record])
            raise

    def _marked_by_template(self, records: Sequence[Record]) -> list[EncodedChat]:
        rendered: Any = self._tokenizer.apply_chat_template(
            [_turns(record) for record in records],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"verbose": False},
        )
        pairs = zip(rendered["input_ids"], rendered["assistant_masks"], strict=True)
        return [EncodedChat(ids, np.array(mask, dtype=bool)) for ids, mask in pairs]

    def _by_prefixes(self, records: Sequence[Record]) -> list[EncodedChat]:
        texts, spans = [], []
        for record in records:
            with _refusals(record):
                texts.append(self._render(record, len(record.messages)))
                spans.append(self._spans(record, texts[-1]))
        rendered = self._tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        chats = []
        for ids, offsets, said in zip(
            rendered["input_ids"], rendered["offset_mapping"], spans, strict=True
        ):
            begins, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
            targets_T = np.zeros(len(ids), dtype=bool)
            for start, stop in said:  # a token on the edge counts, as it does with marks
                targets_T |= (begins < stop) & (ends > start)
            chats.append(EncodedChat(ids, targets_T))
        return chats

    def _spans(self, record: Record, text: str) -> list[tuple[int, int]]:
        """Where in the rendered ``text`` the assistant speaks."""
        spans = []
        for place, message in enumerate(record.messages):
            if message.role != ASSISTANT:
                continue
            before = self._render(record, place, prompted=True) if place else ""
            after = self._render(record, place + 1)
            if not (text.startswith(after) and after.startswith(before)):
                raise TokenizerError(
                    f"{record.where}: the chat template does not tell what the assistant says",
                    got=f"turn {place + 1} is rendered in another way, or after another prompt, "
                    "with the turns after it than without them",
                    expected="a conversation's beginning to be rendered as the whole begins",
                    fix=_MARK_IT,
                )
            spans.append((len(before), len(after)))
        return spans

    def _render(self, record: Record, num_turns: int, *, prompted: bool = False) -> str:
        text = self._tokenizer.apply_chat_template(
            _turns(record)[:num_turns], tokenize=False, add_generation_prompt=prompted
        )
        assert isinstance(text, str)
        return text


def _turns(record: Record) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in record.messages]


@contextmanager
def _refusals(record: Record) -> Iterator[None]:
    """What a template raises over a conversation becomes a ``DataError`` that names it."""
    try:
        yield
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(
            f"{record.where}: the chat template refuses the conversation",
            got=(str(error).splitlines() or [type(error).__name__])[0],
            expected="turns that it renders; here: "
            + ", ".join(message.role for message in record.messages),
            fix="mend or drop that record, or set data.chat.template to another",
        ) from error
