"""Bytes and seconds by hand: inside links of 100 B/s and 1 s, across links of 10 B/s and 2 s."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import ACROSS, INSIDE, launches, two_by_two

from collectives.cost import (
    TransportCost,
    choose,
    lambda_share,
    predicted_s,
    traffic,
    transport_s,
)
from collectives.placement import Placement
from collectives.schedule import Change, gather_schedule, reduce_schedule
from collectives.topology import Topology

examples = settings(max_examples=60)

# Of two chunks of 40 bytes, the first goes from rank 0 to all; the second stays on rank 2.
BEFORE = Placement.from_owners([0, 2], 4)
LAYER = Change(BEFORE, Placement(((0, 1, 2, 3), (2,)), 4), 40)
# One chunk of 5 bytes, from rank 3 to rank 1.
SMALL = Change(Placement.from_owners([3], 4), Placement(((1, 3),), 4), 5)


def gather(changes, topology, hierarchical):
    return gather_schedule(changes, topology, hierarchical=hierarchical)


def test_lambda_is_the_share_of_chunks_that_travel():
    assert lambda_share(LAYER) == 0.5
    assert lambda_share(SMALL) == 1.0
    assert lambda_share(Change(BEFORE, BEFORE, 40)) == 0.0
    nothing = Placement((), 4)
    assert lambda_share(Change(nothing, nothing, 40)) == 0.0


def test_flat_bytes_of_each_rank_link_and_node():
    moved = traffic(gather([LAYER, SMALL], two_by_two(), False), [LAYER, SMALL], two_by_two())
    # Rank 0 sends its chunk inside once and across twice; rank 3 sends 5 bytes across.
    assert moved.sent_inside_bytes == (40, 0, 0, 0)
    assert moved.sent_across_bytes == (80, 0, 0, 5)
    assert moved.received_inside_bytes == (0, 40, 0, 0)
    assert moved.received_across_bytes == (0, 5, 40, 40)
    assert moved.sent_bytes == (120, 0, 0, 5)
    assert moved.received_bytes == (0, 45, 40, 40)
    assert (moved.node_out_bytes, moved.node_in_bytes) == ((80, 5), (5, 80))
    assert (moved.inside_bytes, moved.across_bytes) == (40, 85)
    assert (moved.busiest_rank_bytes, moved.busiest_node_bytes) == (120, 80)


def test_hierarchical_bytes_of_each_rank_link_and_node():
    moved = traffic(gather([LAYER], two_by_two(), True), [LAYER], two_by_two())
    # Across once, to rank 2, which passes it on to rank 3.
    assert moved.sent_inside_bytes == (40, 0, 40, 0)
    assert moved.sent_across_bytes == (40, 0, 0, 0)
    assert moved.received_inside_bytes == (0, 40, 0, 40)
    assert moved.received_across_bytes == (0, 0, 40, 0)
    assert (moved.node_out_bytes, moved.node_in_bytes) == ((40, 0), (0, 40))


def test_no_rank_receives_more_than_lambda_times_the_layer_and_the_neediest_just_that():
    # S = 6 chunks x 8 bytes; rank 3 owns none and takes the four that travel, rank 2 one of them.
    before = Placement.from_owners([0, 0, 1, 1, 2, 2], 4)
    after = Placement(((0, 3), (0, 1, 3), (1, 2, 3), (1,), (2, 3), (2,)), 4)
    layer = Change(before, after, 8)
    moved = traffic(gather([layer], two_by_two(), False), [layer], two_by_two())
    assert lambda_share(layer) == 4 / 6
    assert moved.received_bytes == (0, 8, 8, 32)
    assert max(moved.received_bytes) == lambda_share(layer) * 6 * 8
    # Of rank 3's, chunk 4 comes from its own node; rank 1's chunk 1 comes from its own.
    assert moved.received_inside_bytes == (0, 8, 0, 8)
    assert moved.received_across_bytes == (0, 0, 8, 24)


def test_flat_seconds():
    # Node 0 sends 80 bytes at 10 B/s = 8 s; rank 0 sends 120 at 100 B/s = 1.2 s; 2 s of latency.
    assert predicted_s(gather([LAYER], two_by_two(), False), [LAYER], two_by_two()) == 8.0 + 2.0


def test_hierarchical_seconds():
    # 40 bytes across at 10 B/s and 2 s, then 40 inside at 100 B/s and 1 s.
    seconds = predicted_s(gather([LAYER], two_by_two(), True), [LAYER], two_by_two())
    assert seconds == pytest.approx((4.0 + 2.0) + (0.4 + 1.0), rel=1e-12)


def test_seconds_bound_by_a_rank():
    # On one node, rank 0 sends 120 bytes at 100 B/s; a rank that takes two chunks, 80.
    topology = Topology.single_node(4, INSIDE)
    layer = Change(BEFORE, Placement(((0, 1, 2, 3), (1, 2)), 4), 40)
    assert predicted_s(gather([layer], topology, False), [layer], topology) == pytest.approx(2.2)
    taking = Change(BEFORE, Placement(((0, 1), (1, 2)), 4), 40)
    assert predicted_s(gather([taking], topology, False), [taking], topology) == pytest.approx(1.8)


def test_layers_of_one_launch_share_its_latency():
    # Rank 0's 80 bytes across and rank 3's 5 go different ways: 8 s, and 2 s once.
    layers = [LAYER, SMALL]
    assert predicted_s(gather(layers, two_by_two(), False), layers, two_by_two()) == 10.0


def test_nothing_takes_no_time():
    still = [Change(BEFORE, BEFORE, 40)]
    assert predicted_s(gather(still, two_by_two(), True), still, two_by_two()) == 0.0


P2P = TransportCost(launch_s=0.5, bytes_per_s=20.0, copies=1)
PACKED = TransportCost(launch_s=0.5, bytes_per_s=20.0, copies=3)


@pytest.mark.parametrize(
    ("name", "cost", "seconds"),
    [
        # One round: rank 0's 120 bytes at 20 B/s are 6 s, node 0's 80 at 10 B/s are 8 s.
        ("p2p", P2P, 0.5 + 8.0),
        # The same with every byte moved three times at 20 B/s: 18 s.
        ("all_to_all", PACKED, 0.5 + 18.0),
        # The one travelling chunk goes to all: 40 bytes through every rank (2 s) and node (4 s).
        ("broadcast", P2P, 0.5 + 4.0),
        # Rank 0's 80 bytes at 20 B/s as long as the 40 across, 4 s; then 40 inside, 2 s.
        ("hierarchical", P2P, (0.5 + 4.0) + (0.5 + 2.0)),
    ],
)
def test_seconds_of_each_transport(name, cost, seconds):
    assert transport_s(name, cost, [LAYER], two_by_two()) == pytest.approx(seconds, rel=1e-12)


def test_a_broadcast_sends_the_other_chunks_from_rank_to_rank():
    # LAYER's chunk as above; then SMALL's 5 bytes across: 0.5 s and 5 / 10.
    seconds = transport_s("broadcast", P2P, [LAYER, SMALL], two_by_two())
    assert seconds == pytest.approx((0.5 + 4.0) + (0.5 + 0.5), rel=1e-12)
    # On one node no link between nodes is in the way: 40 / 20 and 5 / 20.
    one_node = Topology((0, 0, 0, 0), INSIDE, ACROSS)
    seconds = transport_s("broadcast", P2P, [LAYER, SMALL], one_node)
    assert seconds == pytest.approx((0.5 + 2.0) + (0.5 + 0.25), rel=1e-12)


def test_only_an_all_to_all_is_launched_where_nothing_moves():
    still = [Change(BEFORE, BEFORE, 40)]
    names = ("all_to_all", "broadcast", "hierarchical", "p2p")
    seconds = {name: transport_s(name, P2P, still, two_by_two()) for name in names}
    assert seconds == {"all_to_all": 0.5, "broadcast": 0.0, "hierarchical": 0.0, "p2p": 0.0}


def test_the_cheapest_transport_is_chosen():
    costs = {"p2p": P2P, "all_to_all": PACKED, "hierarchical": P2P, "broadcast": P2P}
    assert choose(costs, [LAYER], two_by_two()) == "broadcast"
    del costs["broadcast"]
    assert choose(costs, [LAYER], two_by_two()) == "hierarchical"
    del costs["hierarchical"]
    assert choose(costs, [LAYER], two_by_two()) == "p2p"
    slow = TransportCost(launch_s=60.0, bytes_per_s=20.0, copies=1)
    assert choose({"p2p": slow, "all_to_all": PACKED}, [LAYER], two_by_two()) == "all_to_all"


def test_of_equal_transports_the_first_by_name_is_chosen():
    # On one node the two-level schedule is the flat one.
    topology = Topology.single_node(4, INSIDE)
    assert choose({"p2p": P2P, "hierarchical": P2P}, [LAYER], topology) == "hierarchical"
    assert choose({"p2p": P2P, "all_to_all": P2P}, [LAYER], topology) == "all_to_all"


def test_transports_without_a_model_or_cost_are_refused():
    with pytest.raises(ValueError, match="transport 'pigeon'; expected one of .*'p2p'"):
        transport_s("pigeon", P2P, [LAYER], two_by_two())
    with pytest.raises(ValueError, match="no transport to choose from"):
        choose({}, [LAYER], two_by_two())


@pytest.mark.parametrize(
    ("launch_s", "bytes_per_s", "copies", "message"),
    [
        (-0.1, 1.0, 1, "a launch of -0.1 s"),
        (math.nan, 1.0, 1, "a launch of nan s"),
        (0.0, 0.0, 1, "of 0.0 bytes per second"),
        (0.0, math.inf, 1, "of inf bytes per second"),
        (0.0, 1.0, 0, "0 copies"),
    ],
)
def test_costs_that_cannot_be_are_refused(launch_s, bytes_per_s, copies, message):
    with pytest.raises(ValueError, match=message):
        TransportCost(launch_s, bytes_per_s, copies)


@examples
@given(launch=launches(), hierarchical=st.booleans())
def test_a_rank_receives_its_copies_and_a_node_what_it_lacks(launch, hierarchical):
    changes, topology = launch.changes, launch.topology
    moved = traffic(gather(changes, topology, hierarchical), changes, topology)
    for rank in range(topology.world_size):
        missing = sum(
            item.chunk_bytes
            * len(set(item.after.chunks_on(rank)) - set(item.before.chunks_on(rank)))
            for item in changes
        )
        assert moved.received_bytes[rank] == missing
        bound = sum(lambda_share(c) * c.before.num_chunks * c.chunk_bytes for c in changes)
        assert missing <= bound + 1e-9
    for node, ranks in enumerate(topology.nodes):
        lacking = 0
        for item in changes:
            for chunk, holders in enumerate(item.after.holders):
                if topology.node_of_rank[item.before.owners[chunk]] != node:
                    copies = len(set(ranks) & set(holders))
                    lacking += item.chunk_bytes * (min(copies, 1) if hierarchical else copies)
        assert moved.node_in_bytes[node] == lacking
    assert sum(moved.sent_bytes) == sum(moved.received_bytes)
    assert sum(moved.node_out_bytes) == sum(moved.node_in_bytes) == moved.across_bytes


@examples
@given(launch=launches(), hierarchical=st.booleans())
def test_a_reduction_moves_and_takes_what_the_gather_does(launch, hierarchical):
    changes, topology = launch.changes, launch.topology
    there = gather(changes, topology, hierarchical)
    back = reduce_schedule(changes, topology, hierarchical=hierarchical)
    out, home = traffic(there, changes, topology), traffic(back, changes, topology)
    assert home.sent_inside_bytes == out.received_inside_bytes
    assert home.received_across_bytes == out.sent_across_bytes
    assert home.node_in_bytes == out.node_out_bytes
    assert predicted_s(back, changes, topology) == pytest.approx(
        predicted_s(there, changes, topology), rel=1e-12
    )


@examples
@given(launch=launches())
def test_seconds_of_a_flat_gather_are_the_papers_formula(launch):
    changes, topology = launch.changes, launch.topology
    world, nodes = range(topology.world_size), range(topology.num_nodes)
    copies = [
        (item.before.owners[chunk], rank, item.chunk_bytes)
        for item in changes
        for chunk, ranks in enumerate(item.after.holders)
        for rank in ranks
        if rank != item.before.owners[chunk]
    ]
    node = topology.node_of_rank
    crossing = [c for c in copies if node[c[0]] != node[c[1]]]
    by_rank = [sum(c[2] for c in copies if c[end] == rank) for end in (0, 1) for rank in world]
    by_node = [sum(c[2] for c in crossing if node[c[end]] == n) for end in (0, 1) for n in nodes]
    expected = 0.0
    if copies:
        expected = max(max(by_node) / 10.0, max(by_rank) / 100.0)
        expected += ACROSS.latency_s if crossing else INSIDE.latency_s
    assert predicted_s(gather(changes, topology, False), changes, topology) == pytest.approx(
        expected, rel=1e-12
    )
