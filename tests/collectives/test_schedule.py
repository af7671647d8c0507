"""Schedules by hand, and what holds for any placements over any nodes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import INSIDE, everywhere, launches, two_by_two

from collectives.placement import Placement
from collectives.schedule import (
    Change,
    Schedule,
    Transfer,
    gather_schedule,
    nearly_everywhere,
    reduce_schedule,
)
from collectives.topology import Topology

LAYER_DIGEST, SCHEDULE_DIGEST = 2802904281339049835, 923158064713018537
examples = settings(max_examples=60)


def change(owners, holders, world_size, chunk_bytes=8):
    before = Placement.from_owners(owners, world_size)
    return Change(before, Placement(tuple(holders), world_size), chunk_bytes)


def pairs(items):
    return [(item.chunk, item.source, item.target) for item in items]


def test_a_flat_gather_copies_from_the_owners_in_one_round():
    layer = change([0, 2, 1], [(0, 1), (2,), (0, 1, 2)], 3)
    schedule = gather_schedule([layer], Topology.single_node(3, INSIDE), hierarchical=False)
    # Neighbours first (0 to 1, 1 to 2), then the ranks after next (1 to 0).
    assert [pairs(items) for items in schedule.rounds] == [[(0, 0, 1), (2, 1, 2), (2, 1, 0)]]


def test_a_source_serves_its_targets_in_turn():
    # Rank 0 owns three chunks; rank 2 takes all of them, rank 1 takes two.
    layer = change([0, 0, 0], [(0, 1, 2), (0, 1, 2), (0, 2)], 3)
    schedule = gather_schedule([layer], Topology.single_node(3, INSIDE), hierarchical=False)
    assert pairs(schedule.rounds[0]) == [(0, 0, 1), (0, 0, 2), (1, 0, 1), (1, 0, 2), (2, 0, 2)]


def test_a_hierarchical_gather_enters_the_other_node_once():
    layer = change([1], [(0, 1, 2, 3)], 4)
    schedule = gather_schedule([layer], two_by_two(), hierarchical=True)
    # Offsets from rank 1: rank 2 is one ahead, rank 0 three.
    assert [pairs(items) for items in schedule.rounds] == [
        [(0, 1, 2), (0, 1, 0)],
        [(0, 2, 3)],
    ]
    assert [pairs(items) for items in schedule.mirrored().rounds] == [
        [(0, 3, 2)],
        [(0, 2, 1), (0, 0, 1)],
    ]


def test_the_new_holder_with_least_to_do_takes_the_copy_for_its_node():
    # Each of rank 0's three chunks goes to both ranks of node 1, and brings 16 bytes of work to
    # its relay: chunk 0's is rank 2, then rank 3 has less, then both have 16. Rank 2 also owns
    # chunk 3, whose copy on rank 3 makes 8 bytes: chunk 0 goes to rank 3, chunk 1 to rank 2
    # (8 < 16), chunk 2 to rank 3 (16 < 24).
    holders = [(0, 2, 3)] * 3
    without = gather_schedule([change([0] * 3, holders, 4)], two_by_two(), hierarchical=True)
    busy = change([0, 0, 0, 2], [*holders, (2, 3)], 4)
    with_own = gather_schedule([busy], two_by_two(), hierarchical=True)
    relays = [
        {item.chunk: item.target for item in schedule.rounds[0] if item.source == 0}
        for schedule in (without, with_own)
    ]
    assert relays == [{0: 2, 1: 3, 2: 2}, {0: 3, 1: 2, 2: 3}]


def test_the_work_of_a_relay_is_what_reaches_it_and_what_it_sends_on():
    # Rank 3 has 12 bytes to send to rank 2. Chunk 0 goes by rank 2, 8 bytes in and 8 out; so chunk
    # 1 goes by rank 3.
    layers = [change([0, 0], [(0, 2, 3)] * 2, 4, 8), change([3], [(2, 3)], 4, 12)]
    schedule = gather_schedule(layers, two_by_two(), hierarchical=True)
    relays = {item.chunk: item.target for item in schedule.rounds[0] if item.source == 0}
    assert relays == {0: 2, 1: 3}


def test_what_an_owner_sends_to_another_node_counts_too():
    # Rank 2 sends chunk 1 to rank 0, so that rank 3 is the one that takes in chunk 0.
    layer = change([0, 2], [(0, 2, 3), (0, 2)], 4)
    schedule = gather_schedule([layer], two_by_two(), hierarchical=True)
    assert [item.target for item in schedule.rounds[0] if item.source == 0] == [3]


def test_large_chunks_choose_their_relay_before_small_ones():
    # 8 bytes to ranks 2 and 3 in layer 0, 40 in layer 1: the larger one finds both idle.
    small = change([0], [(0, 2, 3)], 4, 8)
    large = change([0], [(0, 2, 3)], 4, 40)
    schedule = gather_schedule([small, large], two_by_two(), hierarchical=True)
    assert {item.layer: item.target for item in schedule.rounds[0]} == {1: 2, 0: 3}


def test_a_relay_is_a_rank_that_wants_the_chunk():
    layer = change([0], [(0, 3)], 4)
    schedule = gather_schedule([layer], two_by_two(), hierarchical=True)
    assert [pairs(items) for items in schedule.rounds] == [[(0, 0, 3)]]


def test_layers_are_told_apart_by_their_place_in_the_launch():
    still = change([0, 1], [(0,), (1,)], 2)
    moving = change([1], [(0, 1)], 2, 40)
    schedule = gather_schedule([still, moving], Topology.single_node(2, INSIDE), hierarchical=False)
    assert schedule.rounds == ((Transfer(1, 0, 1, 0),),)


def test_sends_and_receives_are_a_ranks_part_of_each_round():
    layer = change([1], [(0, 1, 2, 3)], 4)
    schedule = gather_schedule([layer], two_by_two(), hierarchical=True)
    assert [pairs(items) for items in schedule.sends(1)] == [[(0, 1, 2), (0, 1, 0)], []]
    assert [pairs(items) for items in schedule.receives(2)] == [[(0, 1, 2)], []]
    assert [pairs(items) for items in schedule.sends(2)] == [[], [(0, 2, 3)]]
    assert schedule.receives(1) == ((), ())
    assert schedule.num_transfers == 3


def test_nearly_everywhere_is_seven_ranks_of_eight():
    holders = [tuple(range(8)), tuple(range(7)), tuple(range(6)), (0,)]
    assert nearly_everywhere(change([0] * 4, holders, 8)) == (0, 1)
    # A chunk that is there already does not travel.
    assert nearly_everywhere(change([0], [(0,)], 1)) == ()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        pytest.param(
            ((0,), (0, 1)),
            ((0,), (0, 1)),
            r"chunk 1 of layer 1 is held by ranks \(0, 1\) before",
            id="two owners",
        ),
        pytest.param(
            ((0,), (1,)),
            ((0,), (0, 2)),
            r"chunk 1 of layer 1 belongs to rank 1 and is held by ranks \(0, 2\)",
            id="the owner gives it up",
        ),
    ],
)
@pytest.mark.parametrize("hierarchical", [False, True])
def test_a_gather_that_cannot_be_names_layer_chunk_and_ranks(before, after, message, hierarchical):
    fine = change([0], [(0, 1)], 3)
    wrong = Change(Placement(before, 3), Placement(after, 3), 8)
    topology = Topology.single_node(3, INSIDE)
    for build in (gather_schedule, reduce_schedule):
        with pytest.raises(ValueError, match=message):
            build([fine, wrong], topology, hierarchical=hierarchical)


def test_a_layer_that_has_a_name_is_called_by_it():
    before, after = Placement.from_owners([0], 2), Placement(((1,),), 2)
    wrong = Change(before, after, 8, name="blocks.7.experts")
    assert wrong == Change(before, after, 8) and wrong.digest() == Change(before, after, 8).digest()
    topology = Topology.single_node(2, INSIDE)
    with pytest.raises(ValueError, match=r"chunk 0 of layer blocks\.7\.experts belongs to rank 0"):
        gather_schedule([wrong], topology, hierarchical=False)
    with pytest.raises(ValueError, match=r"layer blocks\.7\.experts: chunks of 0 bytes"):
        Change(before, before, 0, name="blocks.7.experts")


def test_a_placement_over_other_ranks_than_the_topology_is_refused():
    layer = change([0], [(0, 1)], 2)
    with pytest.raises(ValueError, match="layer 0 is placed over 2 ranks; .* topology's 4"):
        gather_schedule([layer], two_by_two(), hierarchical=False)


@pytest.mark.parametrize(
    ("after", "chunk_bytes", "message"),
    [
        (Placement.from_owners([0, 1], 2), 8, "from 1 chunks over 2 ranks to 2 chunks over 2"),
        (Placement.from_owners([0], 3), 8, "to 1 chunks over 3 ranks"),
        (Placement.from_owners([0], 2), 0, "chunks of 0 bytes"),
    ],
)
def test_a_change_that_cannot_be_is_refused(after, chunk_bytes, message):
    with pytest.raises(ValueError, match=message):
        Change(Placement.from_owners([0], 2), after, chunk_bytes)


@pytest.mark.parametrize(("source", "target"), [(0, 0), (0, 2), (-1, 1)])
def test_a_transfer_between_ranks_that_are_not_there_is_refused(source, target):
    with pytest.raises(ValueError, match=f"from rank {source} to rank {target}"):
        Schedule(((Transfer(0, 0, source, target),),), 2)


def test_digests_are_the_same_in_every_process():
    layer = change([0, 1], [(0, 1), (1,)], 2)
    schedule = gather_schedule([layer], Topology.single_node(2, INSIDE), hierarchical=False)
    assert (layer.digest(), schedule.digest()) == (LAYER_DIGEST, SCHEDULE_DIGEST)


def test_digests_tell_what_differs():
    layer = change([0, 1], [(0, 1), (1,)], 2)
    others = [
        change([0, 1], [(0, 1), (1,)], 2, 16),
        change([0, 1], [(0, 1), (1,)], 3),
        change([0, 1], [(0,), (1,)], 2),
        change([1, 1], [(0, 1), (1,)], 2),
        change([0], [(0, 1)], 2),
    ]
    assert len({layer.digest(), *(other.digest() for other in others)}) == 6
    one, two = Transfer(0, 0, 0, 1), Transfer(0, 1, 0, 1)
    schedules = [
        Schedule((), 2),
        Schedule((), 3),
        Schedule(((one, two),), 2),
        Schedule(((two, one),), 2),
        Schedule(((one,), (two,)), 2),
        Schedule(((one, Transfer(1, 1, 0, 1)),), 2),
        Schedule(((one, Transfer(0, 1, 1, 0)),), 2),
    ]
    digests = {schedule.digest() for schedule in schedules}
    assert len(digests) == len(schedules)
    assert all(0 <= digest < 2**63 for digest in digests)


@examples
@given(launch=launches(), hierarchical=st.booleans())
def test_a_gather_brings_every_new_holder_its_copy_once(launch, hierarchical):
    held = {
        (layer, chunk, rank)
        for layer, item in enumerate(launch.changes)
        for chunk, ranks in enumerate(item.before.holders)
        for rank in ranks
    }
    schedule = gather_schedule(launch.changes, launch.topology, hierarchical=hierarchical)
    for items in schedule.rounds:
        assert items
        assert all((item.layer, item.chunk, item.source) in held for item in items)
        arriving = [(item.layer, item.chunk, item.target) for item in items]
        assert held.isdisjoint(arriving) and len(set(arriving)) == len(arriving)
        held.update(arriving)
    assert held == {
        (layer, chunk, rank)
        for layer, item in enumerate(launch.changes)
        for chunk, ranks in enumerate(item.after.holders)
        for rank in ranks
    }


@examples
@given(launch=launches())
def test_a_hierarchical_gather_crosses_each_node_boundary_once(launch):
    topology = launch.topology
    schedule = gather_schedule(launch.changes, topology, hierarchical=True)
    crossings = Counter(
        (item.layer, item.chunk, topology.node_of_rank[item.target])
        for items in schedule.rounds
        for item in items
        if not topology.same_node(item.source, item.target)
    )
    lacking = {
        (layer, chunk, topology.node_of_rank[rank])
        for layer, item in enumerate(launch.changes)
        for chunk, ranks in enumerate(item.after.holders)
        for rank in ranks
        if not topology.same_node(rank, item.before.owners[chunk])
    }
    assert crossings == Counter(lacking)
    assert len(schedule.rounds) <= 2
    for items in schedule.rounds[1:]:
        assert all(topology.same_node(item.source, item.target) for item in items)


@examples
@given(launch=launches(), hierarchical=st.booleans())
def test_no_target_waits_while_another_is_served_twice(launch, hierarchical):
    schedule = gather_schedule(launch.changes, launch.topology, hierarchical=hierarchical)
    for rank in range(launch.topology.world_size):
        for items in schedule.sends(rank):
            waiting = Counter(item.target for item in items)
            served: Counter[int] = Counter()
            for item in items:
                assert all(served[item.target] <= served[other] for other in waiting)
                served[item.target] += 1
                waiting[item.target] -= 1
                waiting = +waiting


@examples
@given(launch=launches(), hierarchical=st.booleans())
def test_a_reduction_is_the_gather_run_backwards(launch, hierarchical):
    gather = gather_schedule(launch.changes, launch.topology, hierarchical=hierarchical)
    reduction = reduce_schedule(launch.changes, launch.topology, hierarchical=hierarchical)
    assert len(gather.rounds) == len(reduction.rounds)
    for there, back in zip(gather.rounds, reversed(reduction.rounds), strict=True):
        assert [(t.layer, t.chunk, t.source, t.target) for t in there] == [
            (t.layer, t.chunk, t.target, t.source) for t in back
        ]
    assert reduction.mirrored() == gather


@examples
@given(launch=launches(), hierarchical=st.booleans())
def test_the_ranks_parts_make_up_the_schedule(launch, hierarchical):
    schedule = gather_schedule(launch.changes, launch.topology, hierarchical=hierarchical)
    ranks = range(launch.topology.world_size)
    for index, items in enumerate(schedule.rounds):
        for end, part in (("source", schedule.sends), ("target", schedule.receives)):
            for rank in ranks:
                own = [item for item in items if getattr(item, end) == rank]
                assert list(part(rank)[index]) == own


@examples
@given(launch=launches(), hierarchical=st.booleans())
def test_placements_that_stay_make_no_rounds(launch, hierarchical):
    still = [Change(c.before, c.before, c.chunk_bytes) for c in launch.changes]
    assert gather_schedule(still, launch.topology, hierarchical=hierarchical).rounds == ()


def test_on_one_node_both_schedules_are_the_same():
    before = Placement.even(6, 3)
    layer = Change(before, everywhere(before), 8)
    topology = Topology.single_node(3, INSIDE)
    flat, two_level = (
        gather_schedule([layer, layer], topology, hierarchical=choice) for choice in (False, True)
    )
    assert flat == two_level
    assert flat.num_transfers == 2 * 6 * 2
