"""Carry schedules out over ranks that all live in this process: the reference for the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from collectives.schedule import Change, Schedule, Transfer
from collectives.transports.protocol import Rows

# rows[rank][layer][chunk]: each a row of the layer's chunk_bytes, wherever it lies.
LocalRows = Sequence[Sequence[Rows]]


@dataclass(frozen=True)
class Moved:
    """``pair_bytes[source][target]``: what went from rank to rank, counted on the rows."""

    pair_bytes: tuple[tuple[int, ...], ...]

    @property
    def total_bytes(self) -> int:
        return sum(map(sum, self.pair_bytes))


class LocalTransport:
    """Gathers and reductions without processes, in place, round by round."""

    @torch.no_grad()
    def gather(self, rows: LocalRows, changes: Sequence[Change], schedule: Schedule) -> Moved:
        """Fill each new holder's row with its owner's value.

        Raises ``ValueError`` where a rank lacks a row that the schedule names, or its size differs.
        """
        moved = _nothing(schedule.world_size)
        for transfers in schedule.rounds:
            # As over a network, nothing that arrives in a round is sent on in that round.
            sent = [_row(rows, changes, item, item.source).clone() for item in transfers]
            for item, value in zip(transfers, sent, strict=True):
                _row(rows, changes, item, item.target).copy_(value)
                moved[item.source][item.target] += value.nbytes
        return Moved(tuple(map(tuple, moved)))

    @torch.no_grad()
    def reduce(self, rows: LocalRows, changes: Sequence[Change], schedule: Schedule) -> Moved:
        """Leave the sum over a chunk's holders in its owner's row; other rows stay as they are.

        In each round a rank adds what reaches it to its own value in ascending order of rank, its
        own place in that order included. Sums of bfloat16 and float16 are kept in float32 to the
        end and rounded once. Raises as ``gather`` does.
        """
        moved = _nothing(schedule.world_size)
        sums: dict[tuple[int, int, int], torch.Tensor] = {}

        def value(item: Transfer, rank: int) -> torch.Tensor:
            row = _row(rows, changes, item, rank)
            wide = torch.promote_types(row.dtype, torch.float32)
            return sums.get((item.layer, item.chunk, rank), row).to(wide)

        for transfers in schedule.rounds:
            parts: dict[tuple[int, int, int], dict[int, torch.Tensor]] = {}
            for item in transfers:
                at_target = parts.setdefault((item.layer, item.chunk, item.target), {})
                at_target[item.target] = value(item, item.target)
                at_target[item.source] = value(item, item.source)
                moved[item.source][item.target] += _row(rows, changes, item, item.source).nbytes
            for place, by_rank in parts.items():
                sums[place] = _sum_in_order([by_rank[rank] for rank in sorted(by_rank)])
        for (layer, chunk, rank), total in sums.items():
            if rank == changes[layer].before.owners[chunk]:
                rows[rank][layer][chunk].copy_(total)
        return Moved(tuple(map(tuple, moved)))


def _sum_in_order(values: Sequence[torch.Tensor]) -> torch.Tensor:
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return total


def _row(rows: LocalRows, changes: Sequence[Change], item: Transfer, rank: int) -> torch.Tensor:
    """The row of ``item``'s chunk on ``rank``, which must be as large as the change says."""
    where = f"chunk {item.chunk} of layer {item.layer} on rank {rank}"
    row = rows[rank][item.layer].get(item.chunk)
    if row is None:
        raise ValueError(
            f"{where} has no row; expected one, since it goes from rank {item.source} "
            f"to rank {item.target}"
        )
    if row.nbytes != changes[item.layer].chunk_bytes:
        raise ValueError(
            f"{where} has {row.nbytes} bytes; expected {changes[item.layer].chunk_bytes}, "
            "as every chunk of that layer"
        )
    return row


def _nothing(world_size: int) -> list[list[int]]:
    return [[0] * world_size for _ in range(world_size)]
