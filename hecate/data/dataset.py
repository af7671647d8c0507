"""Micro-batches of packed sequences: an endless stream to train on, one pass to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hecate.data.packing import (
    Fit,
    PackedRows,
    Packing,
    TooLong,
    document_order,
    fit_documents,
    share_of,
    window_order,
)
from hecate.data.tokens import TokenStore
from hecate.errors import CheckpointError, ConfigError, DataError


@dataclass(frozen=True)
class MicroBatch:
    """One rank's sequences of a micro-batch; tensors are [B, S] int64 on the CPU.

    ``labels_BS[b, s]`` is the token after ``input_ids_BS[b, s]`` in its document, -100 where there
    is none; positions restart with each document and each row. ``document_lengths`` are the lengths
    of the runs over the flattened tokens that may attend to themselves alone.
    """

    input_ids_BS: torch.Tensor
    labels_BS: torch.Tensor
    position_ids_BS: torch.Tensor
    document_lengths: tuple[int, ...]

    @classmethod
    def of(cls, rows: PackedRows) -> MicroBatch:
        return cls(
            torch.from_numpy(rows.input_ids_BS),
            torch.from_numpy(rows.labels_BS),
            torch.from_numpy(rows.position_ids_BS),
            rows.document_lengths(),
        )


class TrainStream:
    """Sequences of shuffled documents without end, the same ones in the same order on any world.

    The only state is ``sequence``, the number of sequences that all ranks together have taken. Each
    epoch lays the documents end to end in an order of its own, cuts them into windows and shuffles
    those; the last few tokens that fill no window are left out of that epoch. Documents that are
    not to be ``split`` stay whole, in rows that are filled up.
    """

    def __init__(
        self,
        tokens: TokenStore,
        *,
        sequence_tokens: int,
        batch_sequences: int,
        accumulation: int,
        seed: int,
        rank: int,
        world_size: int,
        too_long: TooLong = "split",
    ) -> None:
        """Take ``batch_sequences`` a step over all ranks, in ``accumulation`` micro-batches.

        Raises ``ConfigError`` when these do not divide or leave a rank without a sequence, and
        ``DataError`` when the corpus does not fill one batch.
        """
        if batch_sequences % accumulation:
            raise ConfigError(
                "the batch does not divide into micro-batches",
                got=f"{batch_sequences} sequences in {accumulation} micro-batches",
                expected="a multiple of the accumulation",
                fix="change train.batch_sequences or train.accumulation",
            )
        self._micro_sequences = batch_sequences // accumulation
        _check_world(self._micro_sequences, world_size, "train.batch_sequences / accumulation")
        self._tokens = tokens
        self._sequence_tokens = sequence_tokens
        self._too_long: TooLong = too_long
        self._documents = fit_rows(tokens, sequence_tokens, too_long).documents
        self._num_windows = self._packing(self._documents).num_whole_windows
        if self._num_windows < batch_sequences:
            raise DataError(
                "the training split is smaller than one batch",
                got=f"{tokens.num_tokens:,} tokens: {self._num_windows} sequences",
                expected=f"at least {batch_sequences} sequences of {sequence_tokens} tokens",
                fix="bring more text, or lower train.batch_sequences or data.sequence_tokens",
            )
        self._batch_sequences = batch_sequences
        self._accumulation = accumulation
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._sequence = 0
        self._epochs: dict[int, tuple[Packing, NDArray[np.int64]]] = {}

    @property
    def sequence(self) -> int:
        """How many sequences were taken so far, by all ranks together."""
        return self._sequence

    @property
    def sequences_per_epoch(self) -> int:
        return self._num_windows

    @property
    def fullness(self) -> float:
        """The share of an epoch's tokens that are not padding."""
        packing = self._packing(self._documents)
        used = np.diff(packing.stream_starts)[packing.token_starts[:-1] >= 0].sum()
        return float(used / packing.num_tokens)

    @property
    def epoch(self) -> int:
        """The epoch that the next sequence belongs to, from 0."""
        return self._sequence // self._num_windows

    def next_step(self) -> list[MicroBatch]:
        """This rank's part of the next optimizer step: ``accumulation`` micro-batches."""
        mine = share_of(self._micro_sequences, self._rank, self._world_size)
        micro_batches = []
        for micro in range(self._accumulation):
            first = self._sequence + micro * self._micro_sequences
            micro_batches.append(MicroBatch.of(self._rows(first + mine.start, first + mine.stop)))
        self._sequence += self._batch_sequences
        return micro_batches

    def state_dict(self) -> dict[str, int | str]:
        """The position, and what must be the same for it to mean the same."""
        return {"sequence": self._sequence, "epoch": self.epoch, **self._identity()}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on exactly where ``state`` was taken; the batch and the world may differ.

        Raises ``CheckpointError`` when the text, tokenizer, sequence length or seed differs.
        """
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise CheckpointError(
                    "the checkpoint's place in the data is not one of this run's data",
                    got=f"{name} {state.get(name)} in the checkpoint, {mine} here",
                    expected="the same text, tokenizer, data.sequence_tokens and seed",
                    fix="bring them back as they were, or begin a run of another name",
                )
        self._sequence = int(state["sequence"])

    def _identity(self) -> dict[str, int | str]:
        identity: dict[str, int | str] = {
            "tokens": self._tokens.digest,
            "sequence_tokens": self._sequence_tokens,
            "seed": self._seed,
        }
        return identity if self._too_long == "split" else {**identity, "too_long": self._too_long}

    def _packing(self, order: NDArray[np.int64]) -> Packing:
        return _pack(self._tokens, order, self._sequence_tokens, self._too_long)

    def _rows(self, begin: int, end: int) -> PackedRows:
        parts = []
        while begin < end:
            epoch, first = divmod(begin, self._num_windows)
            packing, order = self._epoch(epoch)
            windows = order[first : first + end - begin]
            parts.append(_rows(self._tokens, packing, windows))
            begin += len(windows)
        if len(parts) == 1:
            return parts[0]
        return PackedRows(
            np.concatenate([part.input_ids_BS for part in parts]),
            np.concatenate([part.labels_BS for part in parts]),
            np.concatenate([part.position_ids_BS for part in parts]),
        )

    def _epoch(self, epoch: int) -> tuple[Packing, NDArray[np.int64]]:
        if epoch not in self._epochs:
            order = document_order(len(self._documents), seed=self._seed, epoch=epoch)
            self._epochs = {  # only the epoch at hand is kept
                epoch: (
                    self._packing(self._documents[order]),
                    window_order(self._num_windows, seed=self._seed, epoch=epoch),
                )
            }
        return self._epochs[epoch]


def held_out_batches(
    tokens: TokenStore,
    *,
    sequence_tokens: int,
    batch_sequences: int,
    rank: int,
    world_size: int,
    too_long: TooLong = "split",
) -> Iterator[MicroBatch]:
    """One pass over the split in its own order; every token is in exactly one rank's batches.

    A batch has ``batch_sequences`` over all ranks. Every rank yields as many batches of the same
    sizes as at every other batch, the last ones filled up with rows whose labels are all -100.
    Documents that are too long to stay whole are treated as ``TrainStream`` treats them.
    """
    _check_world(batch_sequences, world_size, "the batch to evaluate")
    documents = fit_rows(tokens, sequence_tokens, too_long).documents
    packing = _pack(tokens, documents, sequence_tokens, too_long)
    mine = share_of(batch_sequences, rank, world_size)
    for first in range(0, packing.num_windows, batch_sequences):
        windows = np.arange(first + mine.start, first + mine.stop)
        yield MicroBatch.of(_rows(tokens, packing, windows))


def fit_rows(tokens: TokenStore, sequence_tokens: int, too_long: TooLong) -> Fit:
    """The documents of a split that rows are made of. Raises ``DataError`` if none fits."""
    fit = fit_documents(tokens.starts, tokens.targets_T, sequence_tokens, too_long)
    if not len(fit.documents):
        raise DataError(
            f"no conversation of the {tokens.split} split fits a row",
            got=f"{fit.dropped} of {int(np.diff(tokens.starts).min())} tokens or more",
            expected=f"at most data.sequence_tokens = {sequence_tokens}",
            fix="raise data.sequence_tokens, or set data.chat.too_long to truncate",
        )
    return fit


def _pack(
    tokens: TokenStore, order: NDArray[np.int64], sequence_tokens: int, too_long: TooLong
) -> Packing:
    pack = Packing.of if too_long == "split" else Packing.whole
    return pack(tokens.starts, order, sequence_tokens)


def _rows(tokens: TokenStore, packing: Packing, windows: NDArray[np.int64]) -> PackedRows:
    return packing.rows(tokens.tokens_T, windows, tokens.eos_id, tokens.targets_T)


def _check_world(sequences: int, world_size: int, what: str) -> None:
    if sequences < world_size:
        raise ConfigError(
            f"{what} is fewer sequences than there are ranks",
            got=f"{sequences} sequences for {world_size} ranks",
            expected="at least one sequence for each rank",
            fix="raise train.batch_sequences, or run on fewer ranks",
        )
