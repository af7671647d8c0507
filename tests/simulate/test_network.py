"""Bytes of the busiest links, by hand: four ranks on two nodes."""

import numpy as np
import pytest

from collectives.placement import Placement
from collectives.topology import Link, Topology
from hecate.simulate.network import Network, all_reduce
from hecate.simulate.timeline import Work

TOPOLOGY = Topology((0, 0, 1, 1), inside=Link(10.0, 0.0), across=Link(2.0, 0.5))


def test_an_exchange_is_bound_by_the_hottest_receiver() -> None:
    rows_WW = np.zeros((4, 4), dtype=np.int64)
    rows_WW[0, 0] = 100  # stays
    rows_WW[1, 0] = 7
    rows_WW[2, 0], rows_WW[3, 0] = 3, 2
    # inside 7 rows of 10 bytes; node 0 receives 5 rows over 2 bytes a second
    assert Network(TOPOLOGY).exchange(rows_WW, 10) == Work(0.5, 7.0, 25.0)
    # of two cards one rank receives everything through its own
    assert Network(TOPOLOGY, cards_per_node=2).exchange(rows_WW, 10) == Work(0.5, 7.0, 50.0)


def test_an_exchange_on_one_node() -> None:
    topology = Topology.single_node(2, Link(4.0, 0.25))
    rows_WW = np.array([[5, 8], [2, 1]])
    assert Network(topology).exchange(rows_WW, 2, launches=3) == Work(0.75, 4.0, 0.0)


def test_copies_cross_to_a_node_once() -> None:
    owners = Placement.from_owners([0, 1], 4)
    everywhere = Placement(((0, 1, 2, 3), (1,)), 4)
    p2p = Network(TOPOLOGY, transport="p2p").copies(owners, everywhere, 20)
    # rank 0 sends to rank 1 and to node 1, where rank 2 passes it on
    assert p2p == Work(0.5, 2 * 20 / 10, 20 / 2)
    # a broadcast passes through every link once
    assert Network(TOPOLOGY).copies(owners, everywhere, 20) == Work(0.5, 2 * 20 / 10, 20 / 2)
    assert Network(TOPOLOGY).copies(owners, owners, 20) is None


def test_broadcasts_relieve_an_owner_of_much() -> None:
    topology = Topology((0, 1, 2, 3), inside=Link(10.0, 0.0), across=Link(2.0, 0.0))
    owners, everywhere = Placement.from_owners([0], 4), Placement(((0, 1, 2, 3),), 4)
    assert Network(topology, transport="p2p").copies(owners, everywhere, 8) == Work(0.0, 2.4, 12.0)
    assert Network(topology).copies(owners, everywhere, 8) == Work(0.0, 0.8, 4.0)


def test_an_all_reduce_goes_through_every_link_twice() -> None:
    work = all_reduce(TOPOLOGY, 100.0)
    assert work.launch_s == 0.5
    assert work.inside_s == pytest.approx(2 * 100 * 3 / 4 / 10)
    assert work.across_s == pytest.approx(2 * 100 / 2 / 2)
