"""Topologies: nodes, and the link between two ranks."""

from __future__ import annotations

import math

import pytest
from launches import ACROSS, INSIDE

from collectives.topology import Link, Topology


def test_ranks_of_a_node_are_grouped_wherever_they_stand():
    topology = Topology((1, 0, 1, 2), INSIDE, ACROSS)
    assert topology.world_size == 4
    assert topology.num_nodes == 3
    assert topology.nodes == ((1,), (0, 2), (3,))


def test_the_link_follows_from_the_nodes():
    topology = Topology((0, 0, 1), INSIDE, ACROSS)
    assert topology.same_node(0, 1) and topology.same_node(2, 2)
    assert not topology.same_node(1, 2)
    assert topology.link(0, 1) is INSIDE
    assert topology.link(2, 0) is ACROSS


def test_a_single_node_has_one_link():
    topology = Topology.single_node(3, INSIDE)
    assert topology.nodes == ((0, 1, 2),)
    assert topology.link(0, 2) == INSIDE


def test_hosts_are_numbered_as_they_appear():
    topology = Topology.of_hosts(["b", "a", "b", "c"], inside=INSIDE, across=ACROSS)
    assert topology.node_of_rank == (0, 1, 0, 2)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        pytest.param((), "no ranks", id="empty"),
        pytest.param((0, 2), r"\(0, 2\).*without gaps", id="gap"),
        pytest.param((1, 1), "without gaps", id="from one"),
        pytest.param((-1, 0), "without gaps", id="negative"),
    ],
)
def test_nodes_that_cannot_be_are_refused(nodes, message):
    with pytest.raises(ValueError, match=message):
        Topology(nodes, INSIDE, ACROSS)


@pytest.mark.parametrize(
    ("bandwidth", "latency", "message"),
    [
        (0.0, 0.0, "0.0 bytes per second"),
        (-1.0, 0.0, "-1.0 bytes per second"),
        (math.inf, 0.0, "inf bytes per second"),
        (math.nan, 0.0, "nan bytes per second"),
        (1.0, -1.0, "latency of -1.0 s"),
        (1.0, math.nan, "latency of nan s"),
    ],
)
def test_links_that_cannot_be_are_refused(bandwidth, latency, message):
    with pytest.raises(ValueError, match=message):
        Link(bandwidth, latency)
