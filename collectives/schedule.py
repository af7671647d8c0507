"""Schedules: which rank sends which chunk to which rank, in what order (2502.02581, 3.1). Pure.

A *gather* takes placements ``before -> after`` by copying each chunk from its owner to every new
holder; the mirrored *reduction* takes ``after -> before`` by adding the holders' values up at the
owner. Every rank works its schedule out for itself from the same placements: all that is decided
here depends on integers alone, so that all ranks arrive at the same one (see ``digest``).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from collectives.placement import Placement
from collectives.topology import Topology


@dataclass(frozen=True)
class Change:
    """One layer's placements without and with its copies; ``chunk_bytes``: bytes of each chunk.

    A gather takes ``before -> after``, the mirrored reduction ``after -> before``. ``name``: what
    errors call the layer; without one, it is its place among the changes of the launch.
    """

    before: Placement
    after: Placement
    chunk_bytes: int
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        where = f"layer {self.name}: " if self.name else ""
        here = (self.before.num_chunks, self.before.world_size)
        there = (self.after.num_chunks, self.after.world_size)
        if here != there:
            raise ValueError(
                f"{where}a change from {here[0]} chunks over {here[1]} ranks to {there[0]} chunks "
                f"over {there[1]} ranks; expected both placements of the same chunks and ranks"
            )
        if self.chunk_bytes < 1:
            raise ValueError(f"{where}chunks of {self.chunk_bytes} bytes; expected at least 1")

    @cached_property
    def travelling(self) -> tuple[int, ...]:
        """The chunks that some rank holds only afterwards, ascending."""
        pairs = zip(self.before.holders, self.after.holders, strict=True)
        return tuple(chunk for chunk, (old, new) in enumerate(pairs) if old != new)

    def new_holders(self, chunk: int) -> tuple[int, ...]:
        """The ranks that hold ``chunk`` only afterwards, ascending."""
        old = self.before.holders[chunk]
        return tuple(rank for rank in self.after.holders[chunk] if rank not in old)

    def digest(self) -> int:
        """63 bits that tell this change from others, the same in every process."""
        numbers = [self.chunk_bytes, self.before.world_size]
        for placement in (self.before, self.after):
            for ranks in placement.holders:
                numbers += [len(ranks), *ranks]
        return _hash(numbers)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One chunk from rank ``source`` to rank ``target``.

    ``layer`` is the position in the ``changes`` of this launch.
    """

    layer: int
    chunk: int
    source: int
    target: int


@dataclass(frozen=True)
class Schedule:
    """``rounds[i]``: transfers that depend on those of earlier rounds alone; none is empty.

    The order inside a round is the order in which every rank launches its part. A rank that takes
    part in no transfer of a round goes straight to the next one.
    """

    rounds: tuple[tuple[Transfer, ...], ...]
    world_size: int

    def __post_init__(self) -> None:
        for transfers in self.rounds:
            for item in transfers:
                ends = (item.source, item.target)
                if item.source == item.target or min(ends) < 0 or max(ends) >= self.world_size:
                    raise ValueError(
                        f"chunk {item.chunk} of layer {item.layer} goes from rank {item.source} to "
                        f"rank {item.target}; expected two ranks in [0, {self.world_size})"
                    )

    @cached_property
    def num_transfers(self) -> int:
        return sum(len(transfers) for transfers in self.rounds)

    def sends(self, rank: int) -> tuple[tuple[Transfer, ...], ...]:
        """For each round, what ``rank`` sends, in launch order."""
        return self._sends[rank]

    def receives(self, rank: int) -> tuple[tuple[Transfer, ...], ...]:
        """For each round, what ``rank`` receives, in launch order."""
        return self._receives[rank]

    @cached_property
    def _sends(self) -> tuple[tuple[tuple[Transfer, ...], ...], ...]:
        return self._by_rank(lambda item: item.source)

    @cached_property
    def _receives(self) -> tuple[tuple[tuple[Transfer, ...], ...], ...]:
        return self._by_rank(lambda item: item.target)

    def _by_rank(
        self, end: Callable[[Transfer], int]
    ) -> tuple[tuple[tuple[Transfer, ...], ...], ...]:
        own: list[list[list[Transfer]]] = [
            [[] for _ in self.rounds] for _ in range(self.world_size)
        ]
        for index, transfers in enumerate(self.rounds):
            for item in transfers:
                own[end(item)][index].append(item)
        return tuple(tuple(tuple(items) for items in rounds) for rounds in own)

    def mirrored(self) -> Schedule:
        """Every transfer the other way, the last round first."""
        return Schedule(
            tuple(
                tuple(Transfer(item.layer, item.chunk, item.target, item.source) for item in items)
                for items in reversed(self.rounds)
            ),
            self.world_size,
        )

    def digest(self) -> int:
        """63 bits that tell this schedule from others, the same in every process."""
        return self._digest

    @cached_property
    def _digest(self) -> int:
        numbers = [self.world_size]
        for transfers in self.rounds:
            numbers.append(len(transfers))
            for item in transfers:
                numbers += [item.layer, item.chunk, item.source, item.target]
        return _hash(numbers)


def layer_name(changes: Sequence[Change], layer: int) -> str:
    """What errors call a layer of a launch."""
    return changes[layer].name or str(layer)


def gather_schedule(
    changes: Sequence[Change], topology: Topology, *, hierarchical: bool
) -> Schedule:
    """Transfers by which every new holder of every layer gets its copy; all layers at once.

    Flat: one round, each chunk from its owner to each new holder. Hierarchical: the first round
    takes one copy to each node that lacks the chunk, and copies inside the owner's node, which need
    not wait; the second fans out inside the other nodes. A node boundary is crossed once for each
    chunk. On one node both are the same.

    Raises ``ValueError`` where ``before`` is not a partition, is not part of ``after``, or spans
    other ranks than ``topology``.
    """
    for layer, change in enumerate(changes):
        _check(layer_name(changes, layer), change, topology.world_size)
    if hierarchical:
        rounds = _two_level_rounds(changes, topology)
    else:
        rounds = [
            [
                Transfer(layer, chunk, change.before.owners[chunk], target)
                for layer, change in enumerate(changes)
                for chunk in change.travelling
                for target in change.new_holders(chunk)
            ]
        ]
    world_size = topology.world_size
    return Schedule(tuple(_interleaved(items, world_size) for items in rounds if items), world_size)


def reduce_schedule(
    changes: Sequence[Change], topology: Topology, *, hierarchical: bool
) -> Schedule:
    """Transfers by which every owner gets its copies' values: the mirror of ``gather_schedule``.

    ``changes`` are those of the gather. In each round a rank adds what it receives to its own value
    before it sends the sum on.
    """
    return gather_schedule(changes, topology, hierarchical=hierarchical).mirrored()


def nearly_everywhere(change: Change) -> tuple[int, ...]:
    """The travelling chunks that at least 7 of every 8 ranks hold afterwards, ascending.

    Worth one broadcast over the whole group, in which the other ranks receive for nothing.
    """
    least = 7 * change.after.world_size
    return tuple(c for c in change.travelling if 8 * len(change.after.holders[c]) >= least)


def _check(layer: str, change: Change, world_size: int) -> None:
    if change.before.world_size != world_size:
        raise ValueError(
            f"layer {layer} is placed over {change.before.world_size} ranks; "
            f"expected the topology's {world_size}"
        )
    pairs = zip(change.before.holders, change.after.holders, strict=True)
    for chunk, (old, new) in enumerate(pairs):
        if len(old) != 1:
            raise ValueError(
                f"chunk {chunk} of layer {layer} is held by ranks {old} before the gather; "
                "expected its owner alone"
            )
        if old[0] not in new:
            raise ValueError(
                f"chunk {chunk} of layer {layer} belongs to rank {old[0]} and is held by ranks "
                f"{new} afterwards; expected the owner among them"
            )


@dataclass(frozen=True)
class _Arrival:
    """The new holders of one chunk on one node that lacks it."""

    layer: int
    chunk: int
    node: int
    source: int
    targets: tuple[int, ...]
    chunk_bytes: int


def _two_level_rounds(changes: Sequence[Change], topology: Topology) -> list[list[Transfer]]:
    """First round: across nodes, and inside the owner's. Second: inside the other nodes.

    A node's copy arrives at the new holder to which least is planned so far: bytes that it sends
    on, and bytes that reach it from other nodes. The arrivals that cause most work choose first.
    """
    first: list[Transfer] = []
    second: list[Transfer] = []
    arrivals: list[_Arrival] = []
    planned_bytes = [0] * topology.world_size
    for layer, change in enumerate(changes):
        for chunk in change.travelling:
            owner = change.before.owners[chunk]
            on_node: dict[int, list[int]] = {}
            for target in change.new_holders(chunk):
                if topology.same_node(owner, target):
                    first.append(Transfer(layer, chunk, owner, target))
                    planned_bytes[owner] += change.chunk_bytes
                else:
                    on_node.setdefault(topology.node_of_rank[target], []).append(target)
            for node, targets in on_node.items():
                planned_bytes[owner] += change.chunk_bytes
                arrivals.append(
                    _Arrival(layer, chunk, node, owner, tuple(targets), change.chunk_bytes)
                )
    arrivals.sort(
        key=lambda item: (-len(item.targets) * item.chunk_bytes, item.layer, item.chunk, item.node)
    )
    for item in arrivals:
        relay = min(item.targets, key=lambda rank: (planned_bytes[rank], rank))
        planned_bytes[relay] += len(item.targets) * item.chunk_bytes
        first.append(Transfer(item.layer, item.chunk, item.source, relay))
        second.extend(
            Transfer(item.layer, item.chunk, relay, target)
            for target in item.targets
            if target != relay
        )
    return [first, second]


def _interleaved(transfers: Iterable[Transfer], world_size: int) -> tuple[Transfer, ...]:
    """Each source serves its targets in turn, starting after itself, so that none waits for long.

    The k-th chunk of every pair of ranks comes before the next one of any pair; among those, rank r
    sends to r + 1, then to r + 2, ..., so that different sources serve different targets.
    """
    ordered = sorted(transfers, key=lambda t: (t.layer, t.chunk, t.target))
    served: dict[tuple[int, int], int] = {}
    turns: list[tuple[int, int, int, Transfer]] = []
    for item in ordered:
        pair = (item.source, item.target)
        turn = served.get(pair, 0)
        served[pair] = turn + 1
        turns.append((turn, (item.target - item.source) % world_size, item.source, item))
    turns.sort(key=lambda entry: entry[:3])
    return tuple(entry[3] for entry in turns)


def _hash(numbers: Sequence[int]) -> int:
    """A hash of integers that does not depend on the process, the platform or PYTHONHASHSEED."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1
