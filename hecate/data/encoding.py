"""A corpus as tokens, a batch of documents at a time: text whole, of chat what the assistant says.

A document of text is followed by the end-of-sequence token; where a turn of a conversation ends is
the chat template's to say. Special tokens that are spelled out in the text are read as such, as
transformers does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from hecate.data.chat_template import ChatTemplate
from hecate.data.conversations import ASSISTANT
from hecate.data.corpora import Corpus, Split
from hecate.data.packing import Targets

_BATCH_CHARACTERS = 1 << 22

T = TypeVar("T")


@dataclass(frozen=True)
class Encoded:
    """Tokens of a document, or of a piece of it, and the ``text`` that their targets spell."""

    split: Split
    token_ids: list[int]
    targets_T: Targets
    ends_document: bool
    text: str
    source_bytes: int


def encode_text(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[Encoded]]:
    """Every piece of every document; all tokens are targets. Raises ``DataError``."""
    eos_id = int(tokenizer.eos_token_id)
    for batch in _batches(corpus.pieces(), lambda piece: piece.text):
        ids = tokenizer(
            [piece.text for piece in batch],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        yield [
            Encoded(
                piece.split,
                [*token_ids, eos_id] if piece.ends_document else token_ids,
                np.True_,
                piece.ends_document,
                piece.text,
                piece.source_bytes,
            )
            for piece, token_ids in zip(batch, ids, strict=True)
        ]


def encode_chat(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[Encoded]]:
    """Every conversation; what the assistant says are targets.

    Raises ``DataError`` or ``TokenizerError``.
    """
    template = ChatTemplate(tokenizer)
    for batch in _batches(corpus.records(), lambda pair: pair[1].text):
        chats = template.encode([record for _, record in batch])
        yield [
            Encoded(
                split,
                chat.token_ids,
                chat.targets_T,
                True,
                "".join(turn.content for turn in record.messages if turn.role == ASSISTANT),
                record.source_bytes,
            )
            for (split, record), chat in zip(batch, chats, strict=True)
        ]


def _batches(documents: Iterable[T], text_of: Callable[[T], str]) -> Iterator[list[T]]:
    """Documents in batches large enough to keep all cores tokenising."""
    batch: list[T] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(text_of(document))
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
