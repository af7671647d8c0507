"""Experts change owners: their rows arrive whole, whoever had them and whoever gets them."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks

from collectives.placement import Placement
from hecate.fssdp.reshard import Move, OwnedTables, move_owners, moves_between
from hecate.mesh import ParallelContext

BEFORE = ([0, 0, 1, 1, 2], [2, 1, 0, 0, 0], [0, 1, 2, 0, 1])
AFTER = ([1, 0, 0, 1, 2], [0, 0, 0, 0, 0], [0, 1, 2, 0, 1])


def value(layer: int, expert: int, table: int) -> list[float]:
    start = 1000.0 * table + 100 * layer + 10 * expert
    return [start, start + 1, start + 2]


def placements(owners: tuple[list[int], ...], world_size: int) -> list[Placement]:
    return [Placement.from_owners([o % world_size for o in own], world_size) for own in owners]


def moved(ctx: ParallelContext) -> tuple[list[list[list[list[float]]]], list[bool]]:
    before, after = placements(BEFORE, ctx.world_size), placements(AFTER, ctx.world_size)
    layers = []
    for layer, (old, new) in enumerate(zip(before, after, strict=True)):
        tables = tuple(
            torch.tensor([value(layer, e, table) for e in old.chunks_on(ctx.rank)]).view(-1, 3)
            for table in range(2)
        )
        layers.append(OwnedTables(old, new, tables))
    result = move_owners(layers, rank=ctx.rank, group=ctx.groups.gather)
    same = [tables is own.tables for own, tables in zip(layers, result, strict=True)]
    return [[table.tolist() for table in tables] for tables in result], same


def test_moves_by_hand():
    assert moves_between(placements(BEFORE, 3), placements(AFTER, 3)) == (
        Move(0, 0, 0, 1),
        Move(0, 2, 1, 0),
        Move(1, 0, 2, 0),
        Move(1, 1, 1, 0),
    )


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_row_is_with_its_new_owner(world_size):
    after = placements(AFTER, world_size)
    for rank, (tables, same) in enumerate(run_ranks(moved, world_size)):
        for layer, placement in enumerate(after):
            experts = placement.chunks_on(rank)
            assert tables[layer] == [[value(layer, e, t) for e in experts] for t in range(2)]
        assert same[2]  # nobody moved there
