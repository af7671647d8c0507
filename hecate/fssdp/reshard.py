"""Re-sharding: experts change owners between steps, with everything that their owner keeps.

Weights and optimizer moments travel as whole rows, straight from the old owner's tables to the new
one's (2502.02581, section 4.3). Nothing is named by its place in a table, so that what was saved
before a move is found after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from collectives.placement import Placement
from hecate.errors import UsageError


@dataclass(frozen=True)
class OwnedTables:
    """What one rank keeps of one layer: tables ``[e, C]``, a row for each expert that it owns.

    All ranks list the same tables in the same order, those that own nothing with no rows.
    """

    before: Placement
    after: Placement
    tables: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Move:
    """One expert of one layer, from its old owner to its new one."""

    layer: int
    expert: int
    source: int
    target: int


def moves_between(before: Sequence[Placement], after: Sequence[Placement]) -> tuple[Move, ...]:
    """The experts whose owner changes, by layer and expert; the same on every rank."""
    return tuple(
        Move(layer, expert, source, target)
        for layer, (old, new) in enumerate(zip(before, after, strict=True))
        for expert, (source, target) in enumerate(zip(old.owners, new.owners, strict=True))
        if source != target
    )


def move_owners(
    layers: Sequence[OwnedTables], *, rank: int, group: dist.ProcessGroup
) -> list[tuple[torch.Tensor, ...]]:
    """Every layer's tables under ``after``, rows in the order of its ``chunks_on(rank)``.

    Collective over ``group``: all transfers of all layers are one batch. A layer in which nobody
    moves keeps its tables as they are.
    """
    moves = moves_between([own.before for own in layers], [own.after for own in layers])
    moved = {move.layer for move in moves}
    result = [
        _kept_rows(own, rank) if layer in moved else own.tables for layer, own in enumerate(layers)
    ]
    operations = []
    for move in moves:
        own = layers[move.layer]
        for place, table in enumerate(own.tables):
            if rank == move.source:
                row = table[own.before.chunks_on(rank).index(move.expert)]
                operations.append(dist.P2POp(dist.isend, row, group=group, group_peer=move.target))
            elif rank == move.target:
                row = result[move.layer][place][own.after.chunks_on(rank).index(move.expert)]
                operations.append(dist.P2POp(dist.irecv, row, group=group, group_peer=move.source))
    if operations:
        for work in dist.batch_isend_irecv(operations):
            work.wait()
    return result


def _kept_rows(own: OwnedTables, rank: int) -> tuple[torch.Tensor, ...]:
    """New tables with the rows that stay; the others are for the transfers to fill."""
    old, new = own.before.chunks_on(rank), own.after.chunks_on(rank)
    stays = [expert for expert in new if expert in set(old)]
    result = []
    for table in own.tables:
        fresh = table.new_empty(len(new), table.shape[1])
        if stays:
            fresh[[new.index(e) for e in stays]] = table[[old.index(e) for e in stays]]
        result.append(fresh)
    return tuple(result)


def rows_in_state(
    optimizers: Sequence[torch.optim.Optimizer], parameter: nn.Parameter
) -> dict[str, torch.Tensor]:
    """What the optimizers keep of each row of ``parameter``, by name; nothing before they step.

    Any optimizer will do whose state is elementwise: tensors of the parameter's shape, and single
    numbers, which hold for all rows. Raises ``UsageError`` for others.
    """
    rows: dict[str, torch.Tensor] = {}
    for optimizer in optimizers:
        for name, value in sorted(optimizer.state.get(parameter, {}).items()):
            if not isinstance(value, torch.Tensor) or value.ndim == 0:
                continue
            if value.shape != parameter.shape:
                raise UsageError(
                    f"{type(optimizer).__name__} keeps what belongs to no single expert",
                    got=f"{name} of shape {tuple(value.shape)} for {tuple(parameter.shape)}",
                    expected="tensors of the parameter's shape, as AdamW and SGD keep",
                    fix="train the experts with such an optimizer, or with a policy that moves "
                    "no owners, such as expert_parallel",
                )
            rows[name] = value
    return rows
