"""The in-process transport: values, sums, their order, and the bytes that really moved."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import INSIDE, Launch, everywhere, launches, topologies, two_by_two

from collectives import (
    Change,
    Placement,
    Topology,
    gather_schedule,
    lambda_share,
    reduce_schedule,
    traffic,
)
from collectives.transports.local import LocalTransport

examples = settings(max_examples=60)
LOCAL = LocalTransport()
FOUR_BYTES = torch.float32
EIGHT_BYTES = torch.float64


def rows_of(changes, world_size, value, dtype=EIGHT_BYTES):
    """A row of ``value(layer, chunk, rank, size)`` for each chunk that a rank holds afterwards."""
    return [
        [
            {
                chunk: value(layer, chunk, rank, item.chunk_bytes // dtype.itemsize).to(dtype)
                for chunk in item.after.chunks_on(rank)
            }
            for layer, item in enumerate(changes)
        ]
        for rank in range(world_size)
    ]


def random_rows(changes, world_size, seed):
    """Small integers in float64: every sum of them is exact, in any order."""
    generator = torch.Generator().manual_seed(seed)
    return rows_of(
        changes, world_size, lambda *at: torch.randint(-9, 10, (at[3],), generator=generator)
    )


def copy_of(rows):
    return [[{c: row.clone() for c, row in chunks.items()} for chunks in own] for own in rows]


def entries(rows):
    for rank, layers in enumerate(rows):
        for layer, chunks in enumerate(layers):
            for chunk, row in chunks.items():
                yield rank, layer, chunk, row


def gather(launch, rows, hierarchical):
    schedule = gather_schedule(launch.changes, launch.topology, hierarchical=hierarchical)
    return LOCAL.gather(rows, launch.changes, schedule)


def reduce(launch, rows, hierarchical):
    schedule = reduce_schedule(launch.changes, launch.topology, hierarchical=hierarchical)
    return LOCAL.reduce(rows, launch.changes, schedule)


@examples
@given(launch=launches(), hierarchical=st.booleans(), seed=st.integers(0, 99))
def test_a_gather_gives_every_holder_the_owners_value(launch, hierarchical, seed):
    rows = random_rows(launch.changes, launch.topology.world_size, seed)
    given_rows = copy_of(rows)
    gather(launch, rows, hierarchical)
    for _, layer, chunk, row in entries(rows):
        owner = launch.changes[layer].before.owners[chunk]
        assert torch.equal(row, given_rows[owner][layer][chunk])


@examples
@given(launch=launches(), hierarchical=st.booleans(), seed=st.integers(0, 99))
def test_a_reduction_leaves_the_sum_over_holders_at_the_owner(launch, hierarchical, seed):
    rows = random_rows(launch.changes, launch.topology.world_size, seed)
    given_rows = copy_of(rows)
    reduce(launch, rows, hierarchical)
    for rank, layer, chunk, row in entries(rows):
        item = launch.changes[layer]
        expected = given_rows[rank][layer][chunk]
        if rank == item.before.owners[chunk]:
            holders = item.after.holders[chunk]
            expected = torch.stack([given_rows[r][layer][chunk] for r in holders]).sum(0)
        assert torch.equal(row, expected)


@examples
@given(launch=launches(), hierarchical=st.booleans(), seed=st.integers(0, 99))
def test_the_reduction_is_the_adjoint_of_the_gather(launch, hierarchical, seed):
    """<spAG x, y> over all holders = <x, spRS y> over the owners."""
    world_size = launch.topology.world_size
    x = random_rows(launch.changes, world_size, seed)
    y = random_rows(launch.changes, world_size, seed + 1000)
    gathered, reduced = copy_of(x), copy_of(y)
    gather(launch, gathered, hierarchical)
    reduce(launch, reduced, hierarchical)
    left = sum(float(row @ y[rank][layer][c]) for rank, layer, c, row in entries(gathered))
    right = sum(
        float(row @ reduced[rank][layer][c])
        for rank, layer, c, row in entries(x)
        if rank == launch.changes[layer].before.owners[c]
    )
    assert left == right


@examples
@given(data=st.data(), world_size=st.integers(1, 5), each=st.integers(1, 3))
def test_chunks_for_everyone_are_an_all_gather_and_a_reduce_scatter(data, world_size, each):
    before = Placement.even(each * world_size, world_size)
    layer = Change(before, everywhere(before), 16)
    launch = Launch((layer,), data.draw(topologies(world_size)))
    hierarchical = data.draw(st.booleans())
    rows = random_rows([layer], world_size, seed=each)
    given_WCX = torch.stack([torch.stack(list(own[0].values())) for own in rows])
    gathered, reduced = copy_of(rows), copy_of(rows)
    gather(launch, gathered, hierarchical)
    reduce(launch, reduced, hierarchical)
    # Rank r's shard is its block of `each` chunks.
    shards = [given_WCX[r, r * each : (r + 1) * each] for r in range(world_size)]
    for own in gathered:
        assert torch.equal(torch.stack(list(own[0].values())), torch.cat(shards))
    for rank, own in enumerate(reduced):
        block = slice(rank * each, (rank + 1) * each)
        assert torch.equal(torch.stack(list(own[0].values()))[block], given_WCX.sum(0)[block])


@examples
@given(launch=launches(), hierarchical=st.booleans())
def test_bytes_that_move_are_those_that_are_counted(launch, hierarchical):
    changes, topology = launch.changes, launch.topology
    world = range(topology.world_size)
    gathering = gather_schedule(changes, topology, hierarchical=hierarchical)
    reducing = reduce_schedule(changes, topology, hierarchical=hierarchical)
    for run, schedule in ((LOCAL.gather, gathering), (LOCAL.reduce, reducing)):
        moved = run(random_rows(changes, len(world), 0), changes, schedule)
        counted = traffic(schedule, changes, topology)
        assert tuple(map(sum, moved.pair_bytes)) == counted.sent_bytes
        assert tuple(map(sum, zip(*moved.pair_bytes, strict=True))) == counted.received_bytes
        across = sum(
            moved.pair_bytes[a][b] for a in world for b in world if not topology.same_node(a, b)
        )
        assert (across, moved.total_bytes - across) == (counted.across_bytes, counted.inside_bytes)


@examples
@given(launch=launches(), hierarchical=st.booleans())
def test_a_placement_that_stays_moves_no_byte(launch, hierarchical):
    still = Launch(
        tuple(Change(c.before, c.before, c.chunk_bytes) for c in launch.changes), launch.topology
    )
    rows = random_rows(still.changes, still.topology.world_size, 0)
    given_rows = copy_of(rows)
    assert gather(still, rows, hierarchical).total_bytes == 0
    assert reduce(still, rows, hierarchical).total_bytes == 0
    for rank, layer, chunk, row in entries(rows):
        assert torch.equal(row, given_rows[rank][layer][chunk])


@pytest.mark.parametrize("hierarchical", [False, True])
def test_bytes_are_lambda_times_the_layer_by_hand(hierarchical):
    # Of 4 chunks of 16 bytes, S = 64, chunk 0 of rank 0 goes to all: lambda = 1/4.
    layer = Change(
        Placement.even(4, 4), Placement(((0, 1, 2, 3), (1,), (2,), (3,)), 4), chunk_bytes=16
    )
    launch = Launch((layer,), two_by_two())
    moved = gather(launch, random_rows([layer], 4, 0), hierarchical).pair_bytes
    assert [sum(column) for column in zip(*moved, strict=True)] == [0, 16, 16, 16]
    assert lambda_share(layer) * 64 == 16
    if hierarchical:
        assert moved == ((0, 16, 16, 0), (0,) * 4, (0, 0, 0, 16), (0,) * 4)
    else:
        assert moved == ((0, 16, 16, 16), (0,) * 4, (0,) * 4, (0,) * 4)


def test_layers_of_different_sizes_share_a_launch():
    # Layer 0: 2 elements, rank 1 to rank 0. Layer 1: nothing moves. Layer 2: 3 elements, 0 to 1.
    changes = (
        Change(Placement.from_owners([1], 2), Placement(((0, 1),), 2), 16),
        Change(Placement.from_owners([0], 2), Placement.from_owners([0], 2), 8),
        Change(Placement.from_owners([1, 0], 2), Placement(((1,), (0, 1)), 2), 24),
    )
    launch = Launch(changes, Topology.single_node(2, INSIDE))
    rows = rows_of(changes, 2, lambda _, c, r, size: torch.full((size,), 10.0 * c + r))
    moved = gather(launch, rows, hierarchical=False)
    assert moved.pair_bytes == ((0, 24), (16, 0))
    assert rows[0][0][0].tolist() == [1.0, 1.0]
    assert rows[0][1][0].tolist() == [0.0]
    assert rows[1][2][1].tolist() == [10.0] * 3
    assert rows[1][2][0].tolist() == [1.0] * 3


def sum_at(owner, values, dtype, topology, *, hierarchical=False):
    """What ``owner`` ends up with when rank r holds ``values[r]`` of the one chunk."""
    world_size = len(values)
    before = Placement.from_owners([owner], world_size)
    layer = Change(before, everywhere(before), dtype.itemsize)
    rows = rows_of([layer], world_size, lambda _, c, r, size: torch.tensor([values[r]]), dtype)
    reduce(Launch((layer,), topology), rows, hierarchical)
    return rows[owner][0][0].item()


@pytest.mark.parametrize("owner", [0, 1, 2])
def test_sums_run_in_ascending_rank_whoever_owns_the_chunk(owner):
    # (1e8 - 1e8) + 1 = 1. Beginning with the owner or from the end, 1 is lost beside 1e8: 0.
    topology = Topology.single_node(3, INSIDE)
    assert sum_at(owner, [1e8, -1e8, 1.0], FOUR_BYTES, topology) == 1.0
    assert sum_at(owner, [1e8, 1.0, -1e8], FOUR_BYTES, topology) == 0.0


@pytest.mark.parametrize("owner", [0, 3])
def test_a_hierarchical_sum_adds_a_nodes_ranks_first(owner):
    # (1e8 - 1e8) + (1 + 2) = 3 by node.
    values = [1e8, -1e8, 1.0, 2.0]
    assert sum_at(owner, values, FOUR_BYTES, two_by_two(), hierarchical=True) == 3.0


def test_a_hierarchical_sum_takes_the_other_nodes_part_at_its_ranks_place():
    # The owner is rank 0; node 1's part arrives from rank 2, as 1e8 - 1e8 = 0: 1 + 2 + 0. Flat, 1e8
    # would swallow both.
    values = [1.0, 2.0, 1e8, -1e8]
    assert sum_at(0, values, FOUR_BYTES, two_by_two(), hierarchical=True) == 3.0
    assert sum_at(0, values, FOUR_BYTES, two_by_two()) == 0.0


@pytest.mark.parametrize(
    ("owner", "values", "hierarchical"),
    [
        # Rank by rank in bfloat16, each 1 would be lost beside 256.
        pytest.param(0, [256.0, 1.0, 1.0, 1.0], False, id="flat"),
        # Rounded on its way from node 1 (or 0), 257 would be 256, and the sum 258.
        pytest.param(0, [1.0, 1.0, 256.0, 1.0], True, id="from node 1"),
        pytest.param(3, [256.0, 1.0, 1.0, 1.0], True, id="from node 0"),
    ],
)
def test_low_precision_is_added_in_float32_and_rounded_once(owner, values, hierarchical):
    # Beside 256, bfloat16 counts in twos: 259 goes to the even one of its neighbours, 260.
    total = sum_at(owner, values, torch.bfloat16, two_by_two(), hierarchical=hierarchical)
    assert total == 260.0


def test_float64_stays_float64():
    total = sum_at(0, [1.0, 2.0**-40], EIGHT_BYTES, Topology.single_node(2, INSIDE))
    assert total == 1.0 + 2.0**-40


def test_rows_may_be_parameters_and_slots_of_one_buffer():
    before = Placement.from_owners([0, 0], 2)
    layer = Change(before, everywhere(before), 8)
    own, slots = torch.nn.Parameter(torch.arange(4.0)), torch.zeros(2, 2)
    rows = [[{0: own[:2], 1: own[2:]}], [{1: slots[0], 0: slots[1]}]]
    gather(Launch((layer,), Topology.single_node(2, INSIDE)), rows, hierarchical=False)
    assert slots.tolist() == [[2.0, 3.0], [0.0, 1.0]]
    assert not slots.requires_grad


@pytest.mark.parametrize("run", [LOCAL.gather, LOCAL.reduce])
def test_a_missing_row_and_one_of_another_size_are_named(run):
    before = Placement.from_owners([0], 2)
    layer = Change(before, everywhere(before), 8)
    schedule = gather_schedule([layer], Topology.single_node(2, INSIDE), hierarchical=False)
    lacking = [[{0: torch.zeros(2)}], [{}]]
    with pytest.raises(ValueError, match="chunk 0 of layer 0 on rank 1 has no row"):
        run(lacking, [layer], schedule)
    unequal = [[{0: torch.zeros(2)}], [{0: torch.zeros(3)}]]
    with pytest.raises(ValueError, match="layer 0 on rank 1 has 12 bytes; expected 8"):
        run(unequal, [layer], schedule)
