"""Hypothesis strategies: placements before and after, over small worlds and any nodes."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from collectives import Change, Link, Placement, Topology

INSIDE = Link(bandwidth_bytes_per_s=100.0, latency_s=1.0)
ACROSS = Link(bandwidth_bytes_per_s=10.0, latency_s=2.0)
WORLDS = st.integers(1, 5)


@dataclass(frozen=True)
class Launch:
    """The layers of one launch, and the ranks it spans."""

    changes: tuple[Change, ...]
    topology: Topology


def two_by_two() -> Topology:
    """Ranks 0 and 1 on node 0, ranks 2 and 3 on node 1."""
    return Topology((0, 0, 1, 1), INSIDE, ACROSS)


def everywhere(before: Placement) -> Placement:
    """Every chunk on every rank."""
    everyone = tuple(range(before.world_size))
    return Placement((everyone,) * before.num_chunks, before.world_size)


def topologies(world_size: int) -> st.SearchStrategy[Topology]:
    hosts = st.lists(st.sampled_from("abc"), min_size=world_size, max_size=world_size)
    return hosts.map(lambda names: Topology.of_hosts(names, inside=INSIDE, across=ACROSS))


@st.composite
def changes(draw: st.DrawFn, world_size: int) -> Change:
    """A partition of up to 5 chunks of 8, 16 or 24 bytes, and any copies of them."""
    ranks = st.integers(0, world_size - 1)
    owners = draw(st.lists(ranks, max_size=5))
    holders = tuple(tuple(sorted(draw(st.sets(ranks)) | {owner})) for owner in owners)
    before = Placement.from_owners(owners, world_size)
    return Change(before, Placement(holders, world_size), 8 * draw(st.integers(1, 3)))


@st.composite
def launches(draw: st.DrawFn) -> Launch:
    """Up to 3 layers over 1 to 5 ranks on up to 3 nodes."""
    world_size = draw(WORLDS)
    layers = draw(st.lists(changes(world_size), max_size=3))
    return Launch(tuple(layers), draw(topologies(world_size)))
