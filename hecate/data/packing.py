"""Which tokens stand in which sequence: windows over documents laid end to end. Pure.

An order of documents makes one stream; window ``w`` is tokens ``[w * S, (w + 1) * S)`` of it. A
window that begins inside a document does not see what came before: its positions begin at 0.
Nothing is computed before a window is asked for, and nothing is computed per token in Python.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""The label of a token that predicts nothing."""

_DOCUMENTS, _WINDOWS = 0, 1


@dataclass(frozen=True)
class PackedRows:
    """Rows of S tokens, all int64: inputs, labels (the token after each, or -100), positions."""

    input_ids_BS: NDArray[np.int64]
    labels_BS: NDArray[np.int64]
    position_ids_BS: NDArray[np.int64]

    def document_lengths(self) -> tuple[int, ...]:
        """Lengths of the runs that attend to themselves alone, over the flattened tokens."""
        begins = np.flatnonzero(self.position_ids_BS.reshape(-1) == 0)
        return tuple(np.diff(begins, append=self.position_ids_BS.size).tolist())


@dataclass(frozen=True)
class Packing:
    """Documents laid end to end in an order of their own, read as windows of ``sequence_tokens``.

    ``stream_starts`` ([documents + 1]) says where each begins in the stream, and ``token_starts``
    ([documents + 1], the last unused) where it begins among the stored tokens.
    """

    stream_starts: NDArray[np.int64]
    token_starts: NDArray[np.int64]
    sequence_tokens: int

    @classmethod
    def of(
        cls, starts: NDArray[np.int64], order: NDArray[np.int64], sequence_tokens: int
    ) -> Packing:
        """``order`` is a permutation of the documents that lie at ``starts`` ([documents + 1])."""
        stream_starts = np.zeros(len(starts), dtype=np.int64)
        np.cumsum(np.diff(starts)[order], out=stream_starts[1:])
        token_starts = np.append(starts[order], starts[-1])
        return cls(stream_starts, token_starts, sequence_tokens)

    @property
    def num_tokens(self) -> int:
        return int(self.stream_starts[-1])

    @property
    def num_whole_windows(self) -> int:
        return self.num_tokens // self.sequence_tokens

    @property
    def num_windows(self) -> int:
        return -(-self.num_tokens // self.sequence_tokens)

    def rows(
        self, tokens_T: NDArray[np.unsignedinteger], windows: NDArray[np.int64], padding_id: int
    ) -> PackedRows:
        """The windows of those numbers, one a row.

        What lies past the end of the stream is ``padding_id`` with label -100, a document apart.
        """
        begin_B1 = windows[:, None] * self.sequence_tokens
        place = begin_B1 + np.arange(self.sequence_tokens + 1)
        document = np.searchsorted(self.stream_starts, place.reshape(-1), side="right") - 1
        begins = self.stream_starts[document].reshape(place.shape)
        document = document.reshape(place.shape)
        inside = place < self.num_tokens
        source = self.token_starts[document] + place - begins
        ids = tokens_T[np.where(inside, source, 0)].astype(np.int64)
        input_ids_BS = np.where(inside, ids, padding_id)[:, :-1]
        follows = inside[:, 1:] & (document[:, 1:] == document[:, :-1])
        labels_BS = np.where(follows, ids[:, 1:], IGNORED)
        position_ids_BS = (place - np.maximum(begins, begin_B1))[:, :-1]
        return PackedRows(
            np.ascontiguousarray(input_ids_BS),
            np.ascontiguousarray(labels_BS),
            np.ascontiguousarray(position_ids_BS),
        )


def document_order(num_documents: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of the documents in an epoch: a permutation that depends on nothing else."""
    return _permutation(num_documents, seed, epoch, _DOCUMENTS)


def window_order(num_windows: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch's windows are read, so that a long document is shuffled too."""
    return _permutation(num_windows, seed, epoch, _WINDOWS)


def _permutation(size: int, seed: int, epoch: int, purpose: int) -> NDArray[np.int64]:
    # Sorted raw bits, because numpy promises that those never change between its versions; it does
    # not promise it of Generator.permutation, and a resumed run must find the same order.
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch, purpose]))
    keys = np.asarray(bits.random_raw(size), dtype=np.uint64)
    return np.argsort(keys, kind="stable").astype(np.int64)


def share_of(sequences: int, rank: int, world_size: int) -> range:
    """The contiguous part of ``sequences`` that is ``rank``'s; parts differ by at most one."""
    return range(sequences * rank // world_size, sequences * (rank + 1) // world_size)
