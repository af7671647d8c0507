"""Topologies: which ranks share a node, and how fast the two classes of link are. Pure.

Ranks of one node talk over *inside* links (NVLink, shared memory), ranks of two nodes over *across*
links, of which a node has one (its network card) that all its ranks share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Link:
    """One class of link: bytes per second in each direction, and seconds before the first byte."""

    bandwidth_bytes_per_s: float
    latency_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bandwidth_bytes_per_s) and self.bandwidth_bytes_per_s > 0):
            raise ValueError(
                f"a link of {self.bandwidth_bytes_per_s} bytes per second; "
                "expected a finite number above 0"
            )
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            raise ValueError(
                f"a link with a latency of {self.latency_s} s; expected a finite number from 0 up"
            )


@dataclass(frozen=True)
class Topology:
    """``node_of_rank[rank]``: nodes are numbered 0, 1, ... without gaps; each has a rank or more.

    ``inside`` is the link of a rank to its node, ``across`` that of a node to the other nodes.
    """

    node_of_rank: tuple[int, ...]
    inside: Link
    across: Link

    def __post_init__(self) -> None:
        if not self.node_of_rank:
            raise ValueError("a topology of no ranks; expected the node of at least one rank")
        found = sorted(set(self.node_of_rank))
        if found != list(range(len(found))):
            raise ValueError(
                f"the ranks' nodes are {self.node_of_rank}; "
                "expected them numbered 0, 1, ... without gaps"
            )

    @classmethod
    def single_node(cls, world_size: int, link: Link) -> Topology:
        """All ranks on one node."""
        return cls((0,) * world_size, inside=link, across=link)

    @classmethod
    def of_hosts(cls, hosts: Sequence[str], *, inside: Link, across: Link) -> Topology:
        """``hosts[rank]`` is the name of its machine; nodes are numbered as they first appear."""
        numbers = {host: node for node, host in enumerate(dict.fromkeys(hosts))}
        return cls(tuple(numbers[host] for host in hosts), inside=inside, across=across)

    @property
    def world_size(self) -> int:
        return len(self.node_of_rank)

    @cached_property
    def nodes(self) -> tuple[tuple[int, ...], ...]:
        """``nodes[node]``: its ranks, ascending."""
        ranks: list[list[int]] = [[] for _ in range(max(self.node_of_rank) + 1)]
        for rank, node in enumerate(self.node_of_rank):
            ranks[node].append(rank)
        return tuple(tuple(own) for own in ranks)

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    def same_node(self, a: int, b: int) -> bool:
        """Whether ranks ``a`` and ``b`` share a node; a rank does with itself."""
        return self.node_of_rank[a] == self.node_of_rank[b]

    def link(self, a: int, b: int) -> Link:
        """The link between ranks ``a`` and ``b``."""
        return self.inside if self.same_node(a, b) else self.across
