"""Sparse all-gather and reduce-scatter over real ranks: values, sums, their order, no deadlock."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from launches import ACROSS, INSIDE, Launch, changes, everywhere, topologies
from ranks import run_ranks

from collectives import (
    TRANSPORTS,
    Change,
    CollectiveError,
    CollectiveTimeout,
    LaunchResources,
    Placement,
    Schedule,
    Topology,
    Transfer,
    gather_schedule,
    reduce_schedule,
    sparse_all_gather,
    sparse_reduce_scatter,
)
from collectives.transports.local import LocalTransport
from hecate.mesh import ParallelContext

NAMES = sorted(TRANSPORTS)


def start(kind, rows, layers, topology, transport, group, rank):
    """The handle of a gather or a reduction of ``layers``."""
    schedule = gather_schedule if kind == "gather" else reduce_schedule
    collective = sparse_all_gather if kind == "gather" else sparse_reduce_scatter
    return collective(
        rows,
        layers,
        schedule=schedule(layers, topology, hierarchical=transport.hierarchical),
        transport=transport,
        group=group,
        rank=rank,
    )


# By hand: three ranks, the last one on a node of its own, two layers of different sizes and dtypes.
THREE = Topology((0, 0, 1), INSIDE, ACROSS)
LAYERS = (
    Change(
        Placement.from_owners([0, 1, 2, 0], 3), Placement(((0, 1, 2), (1,), (0, 2), (0, 1)), 3), 8
    ),
    Change(Placement.from_owners([2, 2], 3), Placement(((1, 2), (2,)), 3), 24),
)
DTYPES = (torch.float32, torch.float64)
# Rank r puts (r + 1) * 10 ** chunk into its row: what arrives says whose row it was.
GATHERED = (
    ({0: 1, 2: 300, 3: 1000}, {}),
    ({0: 1, 1: 20, 3: 1000}, {0: 3}),
    ({0: 1, 2: 300}, {0: 3, 1: 30}),
)
SUMS = (({0: 6, 3: 3000}, {}), ({1: 20}, {}), ({2: 400}, {0: 5, 1: 30}))


def by_hand_on_rank(ctx: ParallelContext, name: str) -> dict[str, Any]:
    """Rows lie in every other place of a larger buffer, so that what spills over shows."""
    outcome: dict[str, Any] = {"spilled": False}
    for kind, group in (("gather", ctx.groups.tokens), ("reduce", ctx.groups.control)):
        rows, gaps = [], []
        for change, dtype in zip(LAYERS, DTYPES, strict=True):
            numel = change.chunk_bytes // dtype.itemsize
            buffer = torch.full((2 * change.before.num_chunks + 1, numel), -7.0, dtype=dtype)
            held = {c: buffer[2 * c + 1] for c in change.after.chunks_on(ctx.rank)}
            for chunk, row in held.items():
                if kind == "reduce" or change.before.owners[chunk] == ctx.rank:
                    row.fill_((ctx.rank + 1) * 10**chunk)
            rows.append(held)
            gaps.append(buffer[::2])
        start(kind, rows, LAYERS, THREE, TRANSPORTS[name](), group, ctx.rank).wait()
        outcome["spilled"] |= any(bool((gap != -7).any()) for gap in gaps)
        outcome[kind] = [{chunk: row.tolist() for chunk, row in held.items()} for held in rows]
    return outcome


@pytest.mark.parametrize("name", NAMES)
def test_new_holders_get_the_owners_rows_and_owners_the_sums(name):
    for rank, outcome in enumerate(run_ranks(by_hand_on_rank, 3, name)):
        assert not outcome["spilled"]
        for layer, numel in enumerate((2, 3)):
            assert outcome["gather"][layer] == {
                chunk: [value] * numel for chunk, value in GATHERED[rank][layer].items()
            }
            for chunk, total in SUMS[rank][layer].items():
                assert outcome["reduce"][layer][chunk] == [total] * numel


# The order of sums: four ranks on two nodes, every chunk everywhere.
FOUR = Topology((0, 0, 1, 1), INSIDE, ACROSS)
NUMEL = 1031


def noisy_row(rank: int, chunk: int, dtype: torch.dtype) -> torch.Tensor:
    """Values of very different size, so that the order of a sum shows in it."""
    generator = torch.Generator().manual_seed(10 * rank + chunk)
    values = torch.randn(NUMEL, generator=generator) * 10 ** torch.randint(
        0, 4, (NUMEL,), generator=generator
    )
    return values.to(dtype)


def sums_on_rank(ctx: ParallelContext, name: str, dtype: torch.dtype) -> list[torch.Tensor]:
    before = Placement.from_owners([0, 1, 2, 3], 4)
    layers = [Change(before, everywhere(before), NUMEL * dtype.itemsize)]
    transport = TRANSPORTS[name]()
    results = []
    for _ in range(3):
        rows = [{chunk: noisy_row(ctx.rank, chunk, dtype) for chunk in range(4)}]
        start("reduce", rows, layers, FOUR, transport, ctx.groups.tokens, ctx.rank).wait()
        results.append(rows[0][ctx.rank])
    return results


def folded(chunk: int, dtype: torch.dtype, nested: str) -> torch.Tensor:
    """The sum in float32 or wider, rounded once: from the left, or with the other node's first."""
    wide = torch.promote_types(dtype, torch.float32)
    a, b, c, d = (noisy_row(rank, chunk, dtype).to(wide) for rank in range(4))
    if nested == "nodes" and chunk < 2:
        return ((a + b) + (c + d)).to(dtype)
    return (((a + b) + c) + d).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_sums_are_added_in_the_order_of_ranks_and_rounded_once(name, dtype):
    outcomes = run_ranks(sums_on_rank, 4, name, dtype)
    for chunk, repeats in enumerate(outcomes):
        assert all(torch.equal(repeats[0], other) for other in repeats[1:])
        expected = folded(chunk, dtype, "nodes" if name == "hierarchical" else "left")
        if name == "broadcast":  # the order of the backend
            ulp = torch.finfo(dtype).eps
            torch.testing.assert_close(repeats[0], expected, rtol=ulp, atol=1e-3)
        else:
            assert torch.equal(repeats[0], expected)
    # The test can tell: another order, or a sum that is rounded on the way, gives other bits.
    nested = [folded(chunk, torch.float32, "nodes") for chunk in range(2)]
    assert not all(
        torch.equal(other, folded(chunk, torch.float32, "left"))
        for chunk, other in enumerate(nested)
    )


def small_terms_on_rank(ctx: ParallelContext, name: str) -> float:
    before = Placement.from_owners([0], 4)
    layers = [Change(before, everywhere(before), 2)]
    rows = [{0: torch.tensor([256.0 if ctx.rank == 0 else 1.0], dtype=torch.bfloat16)}]
    start("reduce", rows, layers, FOUR, TRANSPORTS[name](), ctx.groups.tokens, ctx.rank).wait()
    return float(rows[0][0])


@pytest.mark.parametrize("name", NAMES)
def test_small_terms_are_not_lost_in_bfloat16(name):
    """In bfloat16 256 + 1 is 256. The sum 259 lies half-way, and goes to the even one, 260."""
    assert run_ranks(small_terms_on_rank, 4, name)[0] == 260


# Any placements.


def rows_of_all(layers, world_size, seed, dtype):
    """Small integers: every sum of them is exact, in any order."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            {
                chunk: torch.randint(
                    -9, 10, (change.chunk_bytes // dtype.itemsize,), generator=generator
                ).to(dtype)
                for chunk in change.after.chunks_on(rank)
            }
            for change in layers
        ]
        for rank in range(world_size)
    ]


def copied(rows):
    return [[{c: row.clone() for c, row in held.items()} for held in own] for own in rows]


def check_any(ctx: ParallelContext, launches: list[Launch], seed: int) -> None:
    """Two gathers under way at once, then two reductions, each waited for last to first."""
    resources = LaunchResources()
    for name in NAMES:
        transport = TRANSPORTS[name](resources)
        for kind, group in (("gather", ctx.groups.tokens), ("reduce", ctx.groups.control)):
            under_way = []
            for place, launch in enumerate(launches):
                dtype = (torch.float32, torch.bfloat16)[place]
                every = rows_of_all(launch.changes, ctx.world_size, seed + place, dtype)
                expected = copied(every)
                schedule = gather_schedule if kind == "gather" else reduce_schedule
                flat = schedule(launch.changes, launch.topology, hierarchical=False)
                getattr(LocalTransport(), kind)(expected, launch.changes, flat)
                mine = copied(every)[ctx.rank]
                handle = start(
                    kind, mine, launch.changes, launch.topology, transport, group, ctx.rank
                )
                under_way.append((handle, mine, expected[ctx.rank], launch.changes))
            for handle, mine, wanted, layers in reversed(under_way):
                handle.wait()
                for layer, change in enumerate(layers):
                    side = change.after if kind == "gather" else change.before
                    for chunk in side.chunks_on(ctx.rank):
                        assert torch.equal(mine[layer][chunk], wanted[layer][chunk]), (
                            name,
                            kind,
                            layer,
                            chunk,
                        )


def any_placements_on_rank(ctx: ParallelContext) -> int:
    """All ranks draw the same: the draws depend on nothing but the functions' text."""
    count = 0

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        first=changes(ctx.world_size),
        second=changes(ctx.world_size),
        third=changes(ctx.world_size),
        topology=topologies(ctx.world_size),
    )
    def check(first: Change, second: Change, third: Change, topology: Topology) -> None:
        nonlocal count
        count += 1
        check_any(ctx, [Launch((first, second), topology), Launch((third,), topology)], count)

    check()
    return count


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
def test_any_placements_give_the_values_of_the_reference_and_no_deadlock(world_size):
    assert min(run_ranks(any_placements_on_rank, world_size)) >= 40


# Handles.


def waits_on_rank(ctx: ParallelContext, name: str) -> list[bool]:
    """Rank 0 alone owns; rank 2 neither sends nor receives."""
    layers = [Change(Placement.from_owners([0], 3), Placement(((0, 1),), 3), 4)]
    group, transport = ctx.groups.tokens, TRANSPORTS[name]()
    rows = [{0: torch.full((1,), 5.0 if ctx.rank == 0 else 0.0)}] if ctx.rank < 2 else [{}]
    # The receiver launches only after the owner has: a launch that waited would never return.
    if ctx.rank == 1:
        dist.barrier(group=ctx.groups.control)
    handle = start("gather", rows, layers, THREE, transport, group, ctx.rank)
    idle_is_done = ctx.rank < 2 or transport.takes_everyone or handle.done()
    if ctx.rank != 1:
        dist.barrier(group=ctx.groups.control)
    for _ in range(3):
        handle.wait()
    return [idle_is_done, handle.done(), not rows[0] or float(rows[0][0]) == 5.0]


@pytest.mark.parametrize("name", NAMES)
def test_launches_return_at_once_and_may_be_waited_for_again(name):
    assert run_ranks(waits_on_rank, 3, name) == [[True] * 3] * 3


def relay_on_rank(ctx: ParallelContext) -> float:
    """Rank 0 sends to one of ranks 1 and 2, which passes on before it waits."""
    topology = Topology((0, 1, 1), INSIDE, ACROSS)
    before = Placement.from_owners([0], 3)
    layers = [Change(before, everywhere(before), 4)]
    relay = gather_schedule(layers, topology, hierarchical=True).rounds[0][0].target
    rows = [{0: torch.full((1,), 5.0 if ctx.rank == 0 else 0.0)}]
    transport = TRANSPORTS["hierarchical"]()
    handle = start("gather", rows, layers, topology, transport, ctx.groups.tokens, ctx.rank)
    if ctx.rank == relay:
        dist.barrier(group=ctx.groups.control)
        handle.wait()
    else:
        handle.wait()
        dist.barrier(group=ctx.groups.control)
    return float(rows[0][0])


def test_a_relay_passes_on_while_its_rank_does_something_else():
    assert run_ranks(relay_on_rank, 3) == [5.0] * 3


def subgroup_on_rank(ctx: ParallelContext, name: str) -> list[float]:
    """Global ranks 1 and 2 are ranks 0 and 1 of the group."""
    group = dist.new_group([1, 2], backend="gloo")
    if ctx.rank == 0:
        return [3.0, 4.0]
    rank = ctx.rank - 1
    before = Placement.from_owners([0, 1], 2)
    layers = [Change(before, everywhere(before), 4)]
    topology = Topology((0, 0), INSIDE, ACROSS)
    rows = [{c: torch.full((1,), 3.0 + c if c == rank else 0.0) for c in range(2)}]
    start("gather", rows, layers, topology, TRANSPORTS[name](), group, rank).wait()
    return [float(rows[0][c]) for c in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_ranks_are_those_of_the_group(name):
    assert run_ranks(subgroup_on_rank, 3, name) == [[3.0, 4.0]] * 3


def absent_on_rank(ctx: ParallelContext, name: str, kind: str) -> str:
    """Rank 2, the owner, never launches."""
    group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=2))
    before = Placement.from_owners([2], 3)
    layers = [Change(before, everywhere(before), 4 * NUMEL, name="blocks.7.experts")]
    message = "done"
    if ctx.rank < 2:
        rows, transport = [{0: torch.zeros(NUMEL)}], TRANSPORTS[name]()
        handle = start(kind, rows, layers, THREE, transport, group, ctx.rank)
        errors = []
        for _ in range(2):
            try:
                handle.wait()
            except CollectiveError as error:
                errors.append(error)
        if errors:
            assert errors[0] is errors[1]
            message = f"{type(errors[0]).__name__}: {errors[0]}"
    dist.barrier(group=ctx.groups.control)
    return message


@pytest.mark.parametrize("kind", ["gather", "reduce"])
@pytest.mark.parametrize("name", NAMES)
def test_a_rank_that_never_launches_is_a_timeout_that_says_where(name, kind):
    texts = run_ranks(absent_on_rank, 3, name, kind)
    # Between two nodes rank 0 stands for rank 1; two of the transports take every rank.
    ends = {"hierarchical": ("ranks 1, 2", "rank 0"), "p2p": ("rank 2", "rank 2")}
    what = "sparse all-gather" if kind == "gather" else "sparse reduce-scatter"
    for rank, end in enumerate(ends.get(name, ("ranks 1, 2", "ranks 0, 2"))):
        if (name, kind, rank) == ("hierarchical", "reduce", 1):
            assert texts[rank] == "done"  # its part is over once rank 0 has its row
            continue
        assert f"rank {rank}: the {what} of layer blocks.7.experts with {end} " in texts[rank]
    # A rank that has waited long enough closes its connections, of which the other may hear first.
    kinds = {text.split(":")[0] for text in texts} - {"done"}
    assert "CollectiveTimeout" in kinds <= {"CollectiveTimeout", "PeerLost"}
    assert any("was not over within the group's timeout" in text for text in texts)


def unequal_on_rank(ctx: ParallelContext, name: str) -> str:
    """Rank 1 comes with a row of another size than the others'."""
    group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=2))
    before = Placement.from_owners([0], 3)
    layers = [Change(before, everywhere(before), 4 * NUMEL, name="blocks.7.experts")]
    rows = [{0: torch.zeros(NUMEL - (ctx.rank == 1))}]
    with pytest.raises((ValueError, CollectiveTimeout)) as caught:
        start("gather", rows, layers, THREE, TRANSPORTS[name](), group, ctx.rank).wait()
    dist.barrier(group=ctx.groups.control)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_row_of_another_size_ends_every_rank_that_needs_it():
    first, second, _ = run_ranks(unequal_on_rank, 3, "all_to_all")
    assert second.startswith("ValueError: rank 1: the row of chunk 0 of layer blocks.7.experts is")
    assert f"{4 * NUMEL - 4} bytes; expected a contiguous [C] of {4 * NUMEL} bytes" in second
    assert first.startswith("CollectiveTimeout: rank 0: the sparse all-gather of layer blocks.7")


# What one rank can see for itself.


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"rows of 0 layers for a gather of 1 changes"),
        ([{}], r"rank 0: no row of chunk 0 of layer 0, which travels from rank 0 to rank 1"),
        ([{0: torch.zeros(3)}], r"chunk 0 of layer 0 .* \(3,\) and 12 bytes; .* of 8 bytes"),
        ([{0: torch.zeros(1, 2)}], r"shape \(1, 2\)"),
        ([{0: torch.zeros(4)[::2]}], r"strided tensor"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_anything_is_launched(rows, message):
    layers = [Change(Placement.from_owners([0], 2), Placement(((0, 1),), 2), 8)]
    topology = Topology((0, 0), INSIDE, ACROSS)
    with pytest.raises(ValueError, match=message):
        start("gather", rows, layers, topology, TRANSPORTS["p2p"](), None, 0)


def test_an_all_to_all_refuses_a_schedule_of_two_levels():
    rounds = ((Transfer(0, 0, 0, 1),), (Transfer(0, 0, 1, 2),))
    before = Placement.from_owners([0], 3)
    with pytest.raises(ValueError, match=r"2 rounds .* expected a flat one"):
        sparse_all_gather(
            [{0: torch.zeros(1)}],
            [Change(before, everywhere(before), 4)],
            schedule=Schedule(rounds, 3),
            transport=TRANSPORTS["all_to_all"](),
            group=None,
            rank=0,
        )
