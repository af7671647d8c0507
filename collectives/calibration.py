"""How fast this machine's links and transports are: a short measurement that all ranks agree on.

Decisions that rest on it (``choose``, plans of replicas) come out alike on every rank, because
every rank ends with the same bytes: the slowest rank's time of each repeat, or what rank 0 read
from the file of an earlier run.
"""

from __future__ import annotations

import json
import math
import statistics
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from collectives.cost import TransportCost, choose, transport_s
from collectives.placement import Placement
from collectives.schedule import Change, gather_schedule
from collectives.sparse import sparse_all_gather
from collectives.topology import Link, Topology
from collectives.transports import TRANSPORTS
from collectives.transports.protocol import Transport
from collectives.transports.resources import LaunchResources

SIZES_BYTES = (16 * 1024, 2 * 1024 * 1024)
NAMES = tuple(sorted(TRANSPORTS))
LEAST_SHARE = 0.1
LEAST_GAIN = 0.75  # of the usual transport's time, at which another one is taken
# Faster than anything that is measured: where nothing can travel, and to read a model's terms off.
UNBOUNDED = Link(1e15, 0.0)


@dataclass(frozen=True)
class Calibration:
    """Both classes of link and the cost of every transport, the same on all ranks."""

    inside: Link
    across: Link
    costs: Mapping[str, TransportCost]

    def topology(self, node_of_rank: Sequence[int]) -> Topology:
        """These links between the ranks of these nodes."""
        return Topology(tuple(node_of_rank), inside=self.inside, across=self.across)


class TransportChooser:
    """The transport that should take least for each launch; ``auto`` in a configuration.

    Messages between the two ranks concerned are the rule, in two levels where there are nodes:
    another transport must be faster by more than such a measurement errs. Holds one instance of
    each, all of them for the same groups.
    """

    def __init__(self, costs: Mapping[str, TransportCost], topology: Topology) -> None:
        resources = LaunchResources()
        self._costs, self._topology = dict(costs), topology
        self._usual = "hierarchical" if topology.num_nodes > 1 else "p2p"
        self._transports = {name: TRANSPORTS[name](resources) for name in costs}

    def pick(self, changes: Sequence[Change]) -> Transport:
        """The same on all ranks; make the schedule with its ``hierarchical``."""
        best = choose(self._costs, changes, self._topology)
        if self._usual in self._costs:
            usual_s, best_s = (
                transport_s(name, self._costs[name], changes, self._topology)
                for name in (self._usual, best)
            )
            best = best if best_s < LEAST_GAIN * usual_s else self._usual
        return self._transports[best]


def calibrate(
    file: Path,
    group: dist.ProcessGroup,
    rank: int,
    node_of_rank: Sequence[int],
    *,
    machine: str,
    device: torch.device,
) -> Calibration:
    """What ``file`` says of this ``machine``, or a measurement, which rank 0 then writes there.

    ``machine`` names everything that the speeds depend on besides the ranks' nodes (processor,
    backend, version of torch); a file of another machine, or one that cannot be read, is replaced.
    """
    subject = {"machine": machine, "node_of_rank": list(node_of_rank)}
    numbers = _read(file, subject) if rank == 0 else None
    width = 4 + 3 * len(NAMES)
    vector = torch.zeros(1 + width, dtype=torch.float64, device=device)
    if numbers is not None:
        vector.copy_(torch.tensor([1.0, *numbers], dtype=torch.float64))
    dist.broadcast(vector, group_src=0, group=group)
    found, *numbers = vector.tolist()
    if found:
        return _from_numbers(numbers)
    calibration = measure(group, rank, node_of_rank, device=device)
    if rank == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**subject, **asdict(calibration)}, indent=1)
        partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}")  # another job may write too
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    return calibration


def measure(
    group: dist.ProcessGroup,
    rank: int,
    node_of_rank: Sequence[int],
    *,
    device: torch.device,
    sizes_bytes: Sequence[int] = SIZES_BYTES,
    repeats: int = 7,
) -> Calibration:
    """Time gathers of two or more sizes over each class of link, and with each transport.

    Takes well under a second on gloo for a few ranks. All ranks call it; ``group`` should carry
    nothing else meanwhile.
    """
    if len(set(sizes_bytes)) < 2:
        raise ValueError(f"sizes of {list(sizes_bytes)} bytes; expected two different ones or more")
    nodes = Topology(tuple(node_of_rank), inside=UNBOUNDED, across=UNBOUNDED)
    bench = _Bench(group, rank, nodes, device, repeats)
    inside = [ring for ranks in nodes.nodes for ring in _ring(ranks)]
    across = _ring([ranks[0] for ranks in nodes.nodes])
    p2p = TRANSPORTS["p2p"](bench.resources)
    links = [bench.link(p2p, pairs, sizes_bytes) if pairs else None for pairs in (inside, across)]
    known = next((link for link in links if link is not None), UNBOUNDED)
    topology = Topology(tuple(node_of_rank), inside=links[0] or known, across=links[1] or known)
    if nodes.world_size == 1:
        costs = {name: TransportCost(0.0, UNBOUNDED.bandwidth_bytes_per_s, 1) for name in NAMES}
    else:
        costs = {name: bench.cost(name, sizes_bytes) for name in NAMES}
    return Calibration(topology.inside, topology.across, costs)


class _Bench:
    """Times gathers: each repeat as long as the slowest rank's, the median of the repeats."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        rank: int,
        topology: Topology,
        device: torch.device,
        repeats: int,
    ) -> None:
        self.resources = LaunchResources()
        self._group, self._rank, self._topology = group, rank, topology
        self._device, self._repeats = device, repeats

    def link(
        self, transport: Transport, pairs: Sequence[tuple[int, int]], sizes_bytes: Sequence[int]
    ) -> Link:
        """One class of link, from a chunk for each (source, target) of ``pairs`` at once."""
        times_s = []
        for size in sizes_bytes:
            holders = tuple(tuple(sorted(pair)) for pair in pairs)
            world_size = self._topology.world_size
            before = Placement.from_owners([source for source, _ in pairs], world_size)
            change = Change(before, Placement(holders, world_size), size)
            times_s.append(self._gather_s(transport, change))
        latency_s, s_per_byte = _line([float(size) for size in sizes_bytes], times_s)
        return Link(1.0 / s_per_byte, latency_s)

    def cost(self, name: str, sizes_bytes: Sequence[int]) -> TransportCost:
        """The terms of ``transport_s`` that explain gathers of every rank's chunk everywhere."""
        world_size = self._topology.world_size
        everyone = tuple(range(world_size))
        moved_bytes, times_s = [], []
        launches = 1.0
        for size in sizes_bytes:
            before = Placement.from_owners(everyone, world_size)
            change = Change(before, Placement((everyone,) * world_size, world_size), size)
            no_launch = TransportCost(0.0, 1.0, 1)
            only_launch = TransportCost(1.0, UNBOUNDED.bandwidth_bytes_per_s, 1)
            moved_bytes.append(transport_s(name, no_launch, [change], self._topology))
            launches = round(transport_s(name, only_launch, [change], self._topology))
            times_s.append(self._gather_s(TRANSPORTS[name](self.resources), change))
        launch_s, s_per_byte = _line(moved_bytes, times_s)
        return TransportCost(launch_s / launches, 1.0 / s_per_byte, 1)

    def _gather_s(self, transport: Transport, change: Change) -> float:
        numel = change.chunk_bytes
        rows = {
            chunk: torch.zeros(numel, dtype=torch.uint8, device=self._device)
            for chunk in change.after.chunks_on(self._rank)
        }
        schedule = gather_schedule([change], self._topology, hierarchical=transport.hierarchical)

        def once() -> None:
            sparse_all_gather(
                [rows],
                [change],
                schedule=schedule,
                transport=transport,
                group=self._group,
                rank=self._rank,
            ).wait()

        return self._time_s(once)

    def _time_s(self, once: Callable[[], None]) -> float:
        times_s = torch.zeros(1 + self._repeats, dtype=torch.float64, device=self._device)
        start = torch.zeros(1, device=self._device)
        for repeat in range(1 + self._repeats):
            dist.all_reduce(start, group=self._group)
            self._finish()
            began_s = time.perf_counter()
            once()
            self._finish()
            times_s[repeat] = time.perf_counter() - began_s
        dist.all_reduce(times_s, op=dist.ReduceOp.MAX, group=self._group)
        # The first one warms up: connections, buffers.
        measured_s: list[float] = times_s[1:].tolist()
        return statistics.median(measured_s)

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _ring(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Each rank to the next; nothing for a single one."""
    if len(ranks) < 2:
        return []
    return list(zip(ranks, [*ranks[1:], ranks[0]], strict=True))


def _line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Least squares of y = a + b x with a >= 0 and b > 0, whatever noise says.

    Noise can hide what a byte costs behind the cost of a launch; a link that costs nothing would
    then be chosen for everything. So bytes take at least ``LEAST_SHARE`` of the time.
    """
    mean_x, mean_y = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    spread = math.fsum((x - mean_x) ** 2 for x in xs)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    slope = max(slope, LEAST_SHARE * math.fsum(ys) / math.fsum(xs))
    return max(0.0, mean_y - slope * mean_x), slope


def _read(file: Path, subject: Mapping[str, object]) -> list[float] | None:
    """The numbers of ``file``; ``None`` where it is missing, damaged or of something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if any(found[key] != value for key, value in subject.items()):
            return None
        links = [Link(**found[key]) for key in ("inside", "across")]
        costs = {name: TransportCost(**found["costs"][name]) for name in NAMES}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    numbers: list[float] = []
    for link in links:
        numbers += [link.bandwidth_bytes_per_s, link.latency_s]
    for name in NAMES:
        numbers += [costs[name].launch_s, costs[name].bytes_per_s, float(costs[name].copies)]
    return numbers


def _from_numbers(numbers: Sequence[float]) -> Calibration:
    costs = {}
    for place, name in enumerate(NAMES):
        launch_s, bytes_per_s, copies = numbers[4 + 3 * place : 7 + 3 * place]
        costs[name] = TransportCost(launch_s, bytes_per_s, int(copies))
    return Calibration(Link(numbers[0], numbers[1]), Link(numbers[2], numbers[3]), costs)
