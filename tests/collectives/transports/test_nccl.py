"""Every transport on NCCL: values, several layers and rounds, low precision, no wait of the host.

With two or three GPUs schedules have one round; two nodes of two need four.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from gpus import gpus, no_host_wait
from launches import ACROSS, INSIDE, everywhere
from ranks import run_ranks

from collectives import (
    TRANSPORTS,
    Change,
    Handle,
    Placement,
    Topology,
    Transport,
    gather_schedule,
    reduce_schedule,
    sparse_all_gather,
    sparse_reduce_scatter,
)
from collectives.transports import Rows
from hecate.mesh import ParallelContext

NUMEL = 1 << 18
# Long enough for a gather of 64 MiB over any link between GPUs: about 2 s.
BUSY_CYCLES, LARGE_NUMEL = 3_000_000_000, 1 << 24


def topology_of(world_size: int) -> Topology:
    nodes = tuple(rank // 2 for rank in range(world_size)) if world_size > 2 else (0, 1)
    return Topology(nodes, INSIDE, ACROSS)


def changes_of(world_size: int, dtype: torch.dtype) -> list[Change]:
    """All chunks to all ranks; and the last one to rank 0, in which ranks between have no part."""
    before = Placement.from_owners(range(world_size), world_size)
    holders = [(rank,) for rank in range(world_size - 1)] + [(0, world_size - 1)]
    few = Placement(tuple(holders), world_size)
    size = NUMEL * dtype.itemsize
    return [Change(before, everywhere(before), size), Change(before, few, size)]


def value(layer: int, chunk: int) -> float:
    return 1.0 + 2 * chunk + layer


def rows_of(changes: Sequence[Change], rank: int, dtype: torch.dtype, numel: int) -> list[Rows]:
    """This rank's rows: values in what it owns, zero in what it is to get."""
    return [
        {
            chunk: torch.full(
                (numel,), value(layer, chunk) * (chunk == rank), dtype=dtype, device="cuda"
            )
            for chunk in change.after.chunks_on(rank)
        }
        for layer, change in enumerate(changes)
    ]


def launch(
    ctx: ParallelContext,
    transport: Transport,
    kind: str,
    rows: list[Rows],
    changes: Sequence[Change],
) -> Handle:
    collective, schedule_of, group = {
        "gather": (sparse_all_gather, gather_schedule, ctx.groups.gather),
        "reduce": (sparse_reduce_scatter, reduce_schedule, ctx.groups.reduce),
    }[kind]
    schedule = schedule_of(
        changes, topology_of(ctx.world_size), hierarchical=transport.hierarchical
    )
    return collective(
        rows, changes, schedule=schedule, transport=transport, group=group, rank=ctx.rank
    )


def there_and_home(ctx: ParallelContext, name: str) -> None:
    # the gathers' and the reductions' group have resources of their own
    gathers, reductions = TRANSPORTS[name](), TRANSPORTS[name]()
    for dtype in (torch.float32, torch.bfloat16):
        changes = changes_of(ctx.world_size, dtype)
        rows = rows_of(changes, ctx.rank, dtype, NUMEL)
        with no_host_wait():
            gathering = launch(ctx, gathers, "gather", rows, changes)
            gathering.wait()
            copies = [{chunk: row.clone() for chunk, row in layer.items()} for layer in rows]
            reducing = launch(ctx, reductions, "reduce", rows, changes)
            reducing.wait()
        for layer, change in enumerate(changes):
            for chunk, copy in copies[layer].items():
                assert bool((copy == value(layer, chunk)).all()), (dtype, layer, chunk)
            total = value(layer, ctx.rank) * len(change.after.holders[ctx.rank])
            assert bool((rows[layer][ctx.rank] == total).all()), (dtype, layer)
        assert gathering.done() and reducing.done()


@pytest.mark.parametrize("name", [pytest.param(name, marks=gpus(2)) for name in sorted(TRANSPORTS)])
def test_gathers_and_reductions_on_nccl(name):
    run_ranks(there_and_home, min(4, torch.cuda.device_count()), name, device="cuda")


def messages_alone(ctx: ParallelContext) -> None:
    """The first thing that the gathers' group ever carries is a message between two ranks."""
    dtype = torch.float32
    changes = changes_of(ctx.world_size, dtype)[1:]
    rows = rows_of(changes, ctx.rank, dtype, NUMEL)
    launch(ctx, TRANSPORTS["p2p"](), "gather", rows, changes).wait()
    last = ctx.world_size - 1
    if ctx.rank == 0:
        assert bool((rows[0][last] == value(0, last)).all())


@pytest.mark.parametrize("world_size", [pytest.param(3, marks=gpus(3))])
def test_a_message_between_two_ranks_needs_no_third(world_size):
    run_ranks(messages_alone, world_size, device="cuda", timeout_s=90)


def gather_beside_computation(ctx: ParallelContext, name: str) -> tuple[bool, bool]:
    """Whether the gather ended while this rank still computed, and whether what waited for it saw
    its values."""
    before = Placement.from_owners(range(ctx.world_size), ctx.world_size)
    changes = [Change(before, everywhere(before), 4 * LARGE_NUMEL)]
    transport = TRANSPORTS[name]()
    for _ in range(2):  # the first one warms up
        rows = rows_of(changes, ctx.rank, torch.float32, LARGE_NUMEL)
        torch.distributed.barrier(group=ctx.groups.control)
        with no_host_wait():
            handle = launch(ctx, transport, "gather", rows, changes)
            torch.cuda._sleep(BUSY_CYCLES)
            computed = torch.cuda.Event()
            computed.record()
        while not handle.done():
            pass
        beside = not computed.query()
        handle.wait()
        sums = [float(row.mean(dtype=torch.float64)) for row in rows[0].values()]
        complete = sums == [value(0, chunk) for chunk in rows[0]]
    return beside, complete


@pytest.mark.parametrize("name", [pytest.param(name, marks=gpus(2)) for name in sorted(TRANSPORTS)])
def test_a_gather_moves_on_while_its_rank_computes(name):
    outcomes = run_ranks(gather_beside_computation, 2, name, device="cuda")
    assert outcomes == [(True, True)] * 2
