"""What a schedule moves and how long that should take (2502.02581, section 3.1, eq. 1). Pure.

Rounds follow one another. A round takes as long as its busiest part: a node's link to the other
nodes, or a rank's to its node, in the busier direction; and its latency, once::

    round_s = max(node bytes / across bandwidth, rank bytes / inside bandwidth) + latency

A rank's bytes are all that it sends (or receives), whichever link they take further on. A reduction
takes what the gather that it mirrors takes: bytes in and out change places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from collectives.schedule import Change, Schedule, Transfer, gather_schedule, nearly_everywhere
from collectives.topology import Topology


@dataclass(frozen=True)
class Traffic:
    """Bytes by end and class of link: one entry for each rank, or for each node."""

    sent_inside_bytes: tuple[int, ...]
    sent_across_bytes: tuple[int, ...]
    received_inside_bytes: tuple[int, ...]
    received_across_bytes: tuple[int, ...]
    node_out_bytes: tuple[int, ...]
    node_in_bytes: tuple[int, ...]

    @property
    def sent_bytes(self) -> tuple[int, ...]:
        """What each rank sends, over either class of link."""
        return _added(self.sent_inside_bytes, self.sent_across_bytes)

    @property
    def received_bytes(self) -> tuple[int, ...]:
        """What each rank receives, over either class of link."""
        return _added(self.received_inside_bytes, self.received_across_bytes)

    @property
    def inside_bytes(self) -> int:
        """All bytes that stay inside a node."""
        return sum(self.sent_inside_bytes)

    @property
    def across_bytes(self) -> int:
        """All bytes that cross from one node to another."""
        return sum(self.sent_across_bytes)

    @property
    def busiest_rank_bytes(self) -> int:
        """Of the rank that sends or receives most, the busier direction."""
        return max(*self.sent_bytes, *self.received_bytes)

    @property
    def busiest_node_bytes(self) -> int:
        """Of the node that sends most to other nodes or receives most, the busier direction."""
        return max(*self.node_out_bytes, *self.node_in_bytes)


@dataclass(frozen=True)
class TransportCost:
    """What one transport was measured to take: ``launch_s`` + ``copies`` x bytes / ``bytes_per_s``.

    ``bytes_per_s``: of one rank, in the busier direction. ``copies``: how often each byte is moved
    at that rate, packing and unpacking included; 1 where ``bytes_per_s`` was measured end to end.
    """

    launch_s: float
    bytes_per_s: float
    copies: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.launch_s) and self.launch_s >= 0):
            raise ValueError(f"a launch of {self.launch_s} s; expected a finite number from 0 up")
        if not (math.isfinite(self.bytes_per_s) and self.bytes_per_s > 0):
            raise ValueError(
                f"a transport of {self.bytes_per_s} bytes per second; "
                "expected a finite number above 0"
            )
        if self.copies < 1:
            raise ValueError(f"{self.copies} copies of each byte; expected at least 1")


def lambda_share(change: Change) -> float:
    """The chunks that travel over all chunks, which bounds what a rank receives: 0 to 1."""
    chunks = change.before.num_chunks
    return len(change.travelling) / chunks if chunks else 0.0


def traffic(schedule: Schedule, changes: Sequence[Change], topology: Topology) -> Traffic:
    """The bytes of all rounds; ``changes`` are those that the schedule was made of."""
    return _count([item for items in schedule.rounds for item in items], changes, topology)


def predicted_s(schedule: Schedule, changes: Sequence[Change], topology: Topology) -> float:
    """Seconds by the bandwidths and latencies of ``topology`` alone; 0 where nothing moves.

    A round waits for the latency of the slowest class of link that it uses.
    """
    total_s = 0.0
    for items in schedule.rounds:
        moved = _count(items, changes, topology)
        total_s += max(
            moved.busiest_node_bytes / topology.across.bandwidth_bytes_per_s,
            moved.busiest_rank_bytes / topology.inside.bandwidth_bytes_per_s,
        )
        total_s += max(topology.link(item.source, item.target).latency_s for item in items)
    return total_s


def transport_s(
    name: str, cost: TransportCost, changes: Sequence[Change], topology: Topology
) -> float:
    """Seconds of the transport called ``name`` by what it was measured to take.

    Between nodes the bandwidth of ``topology.across`` bounds it too.
    """
    if name not in _PHASES:
        raise ValueError(f"no cost model of transport {name!r}; expected one of {sorted(_PHASES)}")
    total_s = 0.0
    for phase in _PHASES[name](changes, topology):
        total_s += phase.launches * cost.launch_s
        total_s += max(
            cost.copies * phase.rank_bytes / cost.bytes_per_s,
            phase.node_bytes / topology.across.bandwidth_bytes_per_s,
        )
    return total_s


def choose(
    costs: Mapping[str, TransportCost], changes: Sequence[Change], topology: Topology
) -> str:
    """The transport that should take least for these changes; of equals, the first by name."""
    if not costs:
        raise ValueError("no transport to choose from; expected the cost of at least one")
    return min(costs, key=lambda name: (transport_s(name, costs[name], changes, topology), name))


@dataclass(frozen=True)
class _Phase:
    """Launches that follow one another, and the bytes of the busiest rank and node in them."""

    launches: int
    rank_bytes: int
    node_bytes: int


def _point_to_point(
    changes: Sequence[Change], topology: Topology, *, hierarchical: bool = False
) -> list[_Phase]:
    """One launch a round; none where nothing moves."""
    schedule = gather_schedule(changes, topology, hierarchical=hierarchical)
    counted = [_count(items, changes, topology) for items in schedule.rounds]
    return [_Phase(1, moved.busiest_rank_bytes, moved.busiest_node_bytes) for moved in counted]


def _two_level(changes: Sequence[Change], topology: Topology) -> list[_Phase]:
    return _point_to_point(changes, topology, hierarchical=True)


def _all_to_all(changes: Sequence[Change], topology: Topology) -> list[_Phase]:
    """One launch of all ranks, even where nothing moves."""
    return _point_to_point(changes, topology) or [_Phase(1, 0, 0)]


def _broadcast(changes: Sequence[Change], topology: Topology) -> list[_Phase]:
    """A launch for each chunk that nearly every rank needs, and one for the others.

    A pipelined broadcast passes through each rank, and enters and leaves each node, once.
    """
    wide = [nearly_everywhere(change) for change in changes]
    passing_bytes = sum(
        len(chunks) * change.chunk_bytes for chunks, change in zip(wide, changes, strict=True)
    )
    others = [
        _without(change, frozenset(chunks)) for chunks, change in zip(wide, changes, strict=True)
    ]
    crossing_bytes = passing_bytes if topology.num_nodes > 1 else 0
    broadcasts = _Phase(sum(map(len, wide)), passing_bytes, crossing_bytes)
    return [broadcasts, *_point_to_point(others, topology)]


_PHASES: dict[str, Callable[[Sequence[Change], Topology], list[_Phase]]] = {
    "all_to_all": _all_to_all,
    "broadcast": _broadcast,
    "hierarchical": _two_level,
    "p2p": _point_to_point,
}


def _without(change: Change, chunks: frozenset[int]) -> Change:
    """``change`` with ``chunks`` staying where they are."""
    if not chunks:
        return change
    old, new = change.before.holders, change.after.holders
    holders = tuple(old[c] if c in chunks else new[c] for c in range(len(new)))
    return replace(change, after=replace(change.after, holders=holders))


def _count(transfers: Sequence[Transfer], changes: Sequence[Change], topology: Topology) -> Traffic:
    world_size = topology.world_size
    sent_inside, sent_across = [0] * world_size, [0] * world_size
    received_inside, received_across = [0] * world_size, [0] * world_size
    node_out, node_in = [0] * topology.num_nodes, [0] * topology.num_nodes
    for item in transfers:
        num_bytes = changes[item.layer].chunk_bytes
        source_node = topology.node_of_rank[item.source]
        target_node = topology.node_of_rank[item.target]
        if source_node == target_node:
            sent_inside[item.source] += num_bytes
            received_inside[item.target] += num_bytes
        else:
            sent_across[item.source] += num_bytes
            received_across[item.target] += num_bytes
            node_out[source_node] += num_bytes
            node_in[target_node] += num_bytes
    return Traffic(
        sent_inside_bytes=tuple(sent_inside),
        sent_across_bytes=tuple(sent_across),
        received_inside_bytes=tuple(received_inside),
        received_across_bytes=tuple(received_across),
        node_out_bytes=tuple(node_out),
        node_in_bytes=tuple(node_in),
    )


def _added(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))
