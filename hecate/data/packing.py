"""Which tokens stand in which sequence: windows over documents laid end to end. Pure.

An order of documents makes one stream; window ``w`` is tokens ``[w * S, (w + 1) * S)`` of it. A
window that begins inside a document does not see what came before: its positions begin at 0. Where
documents are to stay whole, as conversations are, padding in the stream sees to it.
Nothing is computed before a window is asked for, and nothing is computed per token in Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hecate.data.best_fit import best_fit

IGNORED = -100
"""The label of a token that predicts nothing."""

TooLong = Literal["split", "drop", "truncate"]
"""What becomes of documents longer than a row: all documents are cut at the ends of rows ("split"),
or those that fit stay whole and the others are left out, or cut to a row."""

Targets = NDArray[np.bool_] | np.bool_
"""Which tokens are to be predicted: ``[T]``, or one truth for all."""

_PADDING = -1
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
    ([documents + 1]) where it begins among the stored tokens, -1 where it is padding; the last is
    what lies past the end.
    """

    stream_starts: NDArray[np.int64]
    token_starts: NDArray[np.int64]
    sequence_tokens: int

    @classmethod
    def of(
        cls, starts: NDArray[np.int64], order: NDArray[np.int64], sequence_tokens: int
    ) -> Packing:
        """``order`` is a permutation of the documents that lie at ``starts`` ([documents + 1])."""
        stream_starts = np.zeros(len(order) + 1, dtype=np.int64)
        np.cumsum(np.diff(starts)[order], out=stream_starts[1:])
        return cls(stream_starts, np.append(starts[order], _PADDING), sequence_tokens)

    @classmethod
    def whole(
        cls, starts: NDArray[np.int64], order: NDArray[np.int64], sequence_tokens: int
    ) -> Packing:
        """Each document of ``order`` in one row, cut to it where it is longer.

        Any order of the same documents makes as many rows of the same lengths; which of several
        equally long documents share a row is the order's.
        """
        lengths = np.minimum(np.diff(starts)[order], sequence_tokens)
        by_length = np.argsort(-lengths, kind="stable")
        row = best_fit(lengths[by_length], sequence_tokens)
        by_row = np.argsort(row, kind="stable")
        row, document = row[by_row], by_length[by_row]
        ends = np.cumsum(lengths[document])
        last = np.append(np.flatnonzero(np.diff(row)), len(row) - 1)  # of each row
        used = np.diff(ends[last], prepend=0)
        padded = np.cumsum(sequence_tokens - used) - (sequence_tokens - used)  # before each row
        begins = ends - lengths[document] + padded[row]
        padding = np.flatnonzero(used < sequence_tokens)
        end = len(last) * sequence_tokens
        stream = np.concatenate([begins, padding * sequence_tokens + used[padding], [end]])
        source = np.append(starts[order[document]], np.full(len(padding) + 1, _PADDING))
        place = np.argsort(stream, kind="stable")
        return cls(stream[place], source[place], sequence_tokens)

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
        self,
        tokens_T: NDArray[np.unsignedinteger],
        windows: NDArray[np.int64],
        padding_id: int,
        targets_T: Targets = np.True_,
    ) -> PackedRows:
        """The windows of those numbers, one a row; labels are those tokens that are targets.

        Padding, and what lies past the end of the stream, is ``padding_id`` with label -100, a
        document apart.
        """
        begin_B1 = windows[:, None] * self.sequence_tokens
        place = begin_B1 + np.arange(self.sequence_tokens + 1)
        document = np.searchsorted(self.stream_starts, place.reshape(-1), side="right") - 1
        begins = self.stream_starts[document].reshape(place.shape)
        document = document.reshape(place.shape)
        token_starts = self.token_starts[document]
        inside = token_starts != _PADDING
        source = np.where(inside, token_starts + place - begins, 0)
        ids = tokens_T[source].astype(np.int64)
        input_ids_BS = np.where(inside, ids, padding_id)[:, :-1]
        follows = inside[:, 1:] & (document[:, 1:] == document[:, :-1])
        wanted = np.broadcast_to(targets_T, tokens_T.shape)[source[:, 1:]]
        labels_BS = np.where(follows & wanted, ids[:, 1:], IGNORED)
        position_ids_BS = (place - np.maximum(begins, begin_B1))[:, :-1]
        return PackedRows(
            np.ascontiguousarray(input_ids_BS),
            np.ascontiguousarray(labels_BS),
            np.ascontiguousarray(position_ids_BS),
        )


@dataclass(frozen=True)
class Fit:
    """Which documents rows are made of, and how many the length of a row spares or cuts."""

    documents: NDArray[np.int64]
    dropped: int = 0
    truncated: int = 0


def fit_documents(
    starts: NDArray[np.int64], targets_T: Targets, sequence_tokens: int, too_long: TooLong
) -> Fit:
    """What ``too_long`` makes of documents at ``starts`` ([documents + 1]).

    A document that would lose its last target with its end is left out rather than cut.
    """
    documents = np.arange(len(starts) - 1)
    long = np.flatnonzero(np.diff(starts) > sequence_tokens)
    if too_long == "split" or not len(long):
        return Fit(documents)
    wanted_T = np.broadcast_to(targets_T, (int(starts[-1]),))
    cut = [
        document
        for document in (long.tolist() if too_long == "truncate" else [])
        if wanted_T[starts[document] + 1 : starts[document] + sequence_tokens].any()
    ]
    dropped = np.setdiff1d(long, cut)
    return Fit(np.setdiff1d(documents, dropped), len(dropped), len(cut))


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
