"""What is known of the held-out text before any model: the yardsticks of its validation loss."""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class HeldOutFacts:
    """The held-out split in numbers; of conversations, what the assistant says in it.

    ``tokens`` counts the end of each document; ``predicted_tokens`` leaves out the first of each
    text, which nothing predicts. ``unigram_entropy_nats`` is the loss per token of the best model
    that sees no context, and ``xz_bytes`` what ``xz -9`` makes of the ``bytes`` of text,
    concatenated.
    """

    tokens: int
    predicted_tokens: int
    documents: int
    bytes: int
    unigram_entropy_nats: float
    xz_bytes: int
    vocab_size: int

    @property
    def xz_bits_per_byte(self) -> float:
        return 8 * self.xz_bytes / self.bytes


def held_out_facts(
    tokens: NDArray[np.unsignedinteger],
    *,
    predicted_tokens: int,
    documents: int,
    text_bytes: int,
    xz_bytes: int,
    vocab_size: int,
) -> HeldOutFacts:
    """The facts of the held-out ``tokens`` ([T], any unsigned dtype) and of their text."""
    return HeldOutFacts(
        tokens=len(tokens),
        predicted_tokens=predicted_tokens,
        documents=documents,
        bytes=text_bytes,
        unigram_entropy_nats=unigram_entropy_nats(tokens),
        xz_bytes=xz_bytes,
        vocab_size=vocab_size,
    )


def unigram_entropy_nats(tokens: NDArray[np.unsignedinteger]) -> float:
    """Entropy in nats of the distribution of ``tokens`` ([T])."""
    counts = np.bincount(tokens)
    share = counts[counts > 0] / len(tokens)
    return float(-(share * np.log(share)).sum())


class XzSize:
    """Counts what ``xz -9`` would need for the bytes added, compressing on a thread of its own."""

    def __init__(self) -> None:
        self.text_bytes = 0
        self._compressor = lzma.LZMACompressor(preset=9)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="xz")
        self._pending: Future[bytes] | None = None
        self._xz_bytes = 0

    def __enter__(self) -> XzSize:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()

    def add(self, texts: Iterable[str]) -> None:
        """Take the next of the text; returns when the text before it is compressed."""
        block = "".join(texts).encode("utf-8")
        self.text_bytes += len(block)
        self._settle()
        self._pending = self._thread.submit(self._compressor.compress, block)

    def total(self) -> int:
        """The compressed size of everything added; nothing can be added afterwards."""
        self._settle()
        return self._xz_bytes + len(self._compressor.flush())

    def _settle(self) -> None:
        if self._pending is not None:
            self._xz_bytes += len(self._pending.result())
            self._pending = None
