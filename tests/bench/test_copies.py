"""Which experts are copied, and a transport that can be told to move nothing."""

from __future__ import annotations

import numpy as np

from collectives.placement import Placement
from collectives.schedule import Change, gather_schedule
from collectives.topology import Link, Topology
from collectives.transports import Launch, LaunchResources, P2PTransport
from hecate.bench.copies import FixedCopies, GathersOnRequest
from hecate.planner.load import LoadWindow


def test_the_most_loaded_experts_of_each_layer_are_everywhere():
    counts_YE = np.array([[5, 9, 9, 1], [0, 0, 3, 4]])
    owners = (Placement.even(4, 2), Placement.even(4, 2))
    first, second = FixedCopies(counts_YE, 2).plan(0, LoadWindow(2, 4), owners)
    assert first.holders == ((0,), (0, 1), (0, 1), (1,))
    assert second.holders == ((0,), (0,), (0, 1), (0, 1))


def test_slots_are_levelled_over_whoever_holds_an_expert():
    counts_WE = np.array([[6, 0, 0, 0], [6, 0, 0, 0]])
    policy = FixedCopies(counts_WE[:1], 1)
    (placement,) = policy.plan(0, LoadWindow(1, 4), (Placement.even(4, 2),))
    assert policy.route(counts_WE, placement).sum((0, 1)).tolist() == [6, 6]


def test_skipped_gathers_wait_for_nothing():
    owners = Placement.even(2, 2)
    change = Change(owners, Placement(((0, 1), (0, 1)), 2), 4)
    topology = Topology.single_node(2, Link(1.0, 0.0))
    schedule = gather_schedule([change], topology, hierarchical=False)
    gathers = GathersOnRequest()
    transport = gathers(P2PTransport(LaunchResources()))
    gathers.skips = True
    assert list(transport.gather(Launch([{}], [change], schedule, group=None, rank=0))) == []
