"""How long a step should take with given copies: straggler time and exposed transfers. Pure.

A layer waits for its busiest rank, and for whatever of its transfers attention does not hide::

    layer_s = slots of the busiest rank x slot_s + exposed(gather) + exposed(reduction) + exchange
    exposed(t) = t - overlap x min(t, seconds of attention beside it)
    exchange = the rank that sends and receives most slots, by link

Transfers follow 2502.02581, section 3.1: the busiest node's link to other nodes (each expert enters
a node once) or the busiest rank's link inside, in the busier direction, and one launch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from collectives.topology import Topology
from hecate.planner.load import Loads
from hecate.planner.plan import Ids, Replicas

Seconds = npt.NDArray[np.float64]

GUESSED_IN_VAIN = 0.1  # of the copies that are planned from the loads of the steps before
SWEEPS = 3  # of levelling: more change predicted loads by less than a slot in a thousand


NO_LIMIT = (1 << 31) - 1


@dataclass(frozen=True)
class StepCosts:
    """What the planner reckons with, equal on all ranks.

    ``slot_s``: one slot (a token's choice of an expert) through an expert, forward and backward.
    ``gather_bytes``, ``reduce_bytes``: one expert's weights, one expert's gradient, as they travel.
    ``launch_s``: what a layer's gather or reduction takes beyond its bytes. ``hidden_gather_s``,
    ``hidden_reduce_s``: attention that a layer's gather and reduction run beside. ``overlap``: the
    share of a transfer beside computation that does not slow the computation down; 1 where a
    network card and its own stream do the work, 0 where the same core does, below 0 where the two
    are in each other's way besides. ``gathers``: how often a layer is gathered in a step, 2 with
    re-materialization. ``slots_per_rank``: the most copies of a layer that a rank has memory for,
    the paper's *m*. ``row_s``, ``row_across_s``: what a slot that another rank computes adds at
    each of the two, its rows there and back, forward and backward, inside a node and across nodes.
    ``both_ways``: how long two transfers in opposite directions take at once, over one alone; 1
    where links are duplex, 2 where a core copies both.
    """

    slot_s: float
    gather_bytes: int
    reduce_bytes: int
    launch_s: float = 0.0
    hidden_gather_s: float = 0.0
    hidden_reduce_s: float = 0.0
    overlap: float = 1.0
    gathers: int = 1
    slots_per_rank: int = NO_LIMIT
    row_s: float = 0.0
    row_across_s: float = 0.0
    both_ways: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = (-math.inf, 1.0) if field.name == "overlap" else (0.0, math.inf)
            if not (math.isfinite(value) and low <= value <= high):
                expected = "up to 1" if field.name == "overlap" else "from 0 up"
                raise ValueError(f"{field.name} is {value}; expected a finite number {expected}")

    def exposed_s(self, rank_copies: float, node_copies: float, topology: Topology) -> float:
        """What a layer's transfers add to a step.

        ``rank_copies``: through the busiest rank; ``node_copies``: of these, over the busiest
        node's link to the others. Those of both directions count by ``through``.
        """
        if not rank_copies:
            return 0.0
        inside = topology.inside.bandwidth_bytes_per_s
        across = topology.across.bandwidth_bytes_per_s
        total_s = 0.0
        for times, num_bytes, beside_s in (
            (self.gathers, self.gather_bytes, self.hidden_gather_s),
            (1, self.reduce_bytes, self.hidden_reduce_s),
        ):
            taken_s = max(rank_copies * num_bytes / inside, node_copies * num_bytes / across)
            taken_s += self.launch_s
            total_s += times * (taken_s - self.overlap * min(taken_s, beside_s))
        return total_s

    def through(self, taken: int, sent: int) -> float:
        """Copies in one direction that take as long as ``taken`` and ``sent`` at once."""
        return max(taken, sent) + (self.both_ways - 1) * min(taken, sent)

    def late_copy_s(self, topology: Topology) -> float:
        """One copy that is gathered after the gate, when nothing hides it, and its gradient."""
        slowest = min(
            link.bandwidth_bytes_per_s
            for link, used in (
                (topology.inside, topology.num_nodes < topology.world_size),
                (topology.across, topology.num_nodes > 1),
            )
            if used or topology.world_size == 1
        )
        return (self.gather_bytes + self.reduce_bytes) / slowest

    def cheaper_ahead(self, topology: Topology) -> bool:
        """Whether a copy that is gathered ahead of the gate, for which the loads must be guessed,
        costs clearly less than one that is gathered after it, when they are known."""
        across = float(topology.num_nodes > 1)
        ahead_s = self.exposed_s(1.0, across, topology)
        return ahead_s <= (1 - GUESSED_IN_VAIN) * self.late_copy_s(topology)

    def overlap_experts(self, topology: Topology, *, safety: float = 0.8) -> int:
        """The paper's *t* (section 4.2): experts that travel while attention computes.

        By the slower class of link, and ``safety`` of what it carries; whether that slows
        attention down is not asked.
        """
        slowest = min(topology.inside.bandwidth_bytes_per_s, topology.across.bandwidth_bytes_per_s)
        hidden_bytes = safety * self.hidden_gather_s * slowest
        return int(min(hidden_bytes / max(1, self.gather_bytes), NO_LIMIT))


def rank_loads(
    loads_YE: Loads, owners_YE: Ids, replicas: Replicas, world_size: int, *, levelled: bool = True
) -> Loads:
    """Slots of each rank, ``[Y, W]``: an expert's load is dealt to its holders alike, or levelled.

    ``levelled``: as dispatch by weighted quotas deals it, so that holders come out as equal as a
    few rounds of filling up the lowest make them.
    """
    num_layers, num_experts = loads_YE.shape
    copies_YE = np.ones((num_layers, num_experts), dtype=np.int64)
    np.add.at(copies_YE, (replicas.layer, replicas.expert), 1)
    share_YE = loads_YE / copies_YE
    row_Y = np.arange(num_layers)[:, None] * world_size
    place = np.concatenate([(owners_YE + row_Y).ravel(), replicas.layer * world_size])
    place[num_layers * num_experts :] += replicas.rank
    weights = np.concatenate([share_YE.ravel(), share_YE[replicas.layer, replicas.expert]])
    flat = np.bincount(place, weights, minlength=num_layers * world_size)
    loads_YW: Loads = flat.astype(np.float64).reshape(num_layers, world_size)
    if levelled and len(replicas):
        _level(loads_YE, owners_YE, replicas, share_YE, loads_YW)
    return loads_YW


def _level(
    loads_YE: Loads, owners_YE: Ids, replicas: Replicas, share_YE: Loads, loads_YW: Loads
) -> None:
    """Deal every copied expert out again, a few times over, each time to fill the lowest first."""
    groups: dict[tuple[int, int], list[int]] = {}
    for layer, expert, rank in replicas.triples():
        groups.setdefault((layer, expert), [int(owners_YE[layer, expert])]).append(rank)
    by_layer: dict[int, list[tuple[float, list[int], list[float]]]] = {}
    for (layer, expert), ranks in groups.items():
        dealt = [float(share_YE[layer, expert])] * len(ranks)
        by_layer.setdefault(layer, []).append((float(loads_YE[layer, expert]), ranks, dealt))
    for layer, shared in by_layer.items():
        loads_W = loads_YW[layer].tolist()
        for _ in range(SWEEPS if len(shared) > 1 else 1):
            for amount, ranks, dealt in shared:
                others = [loads_W[rank] - part for rank, part in zip(ranks, dealt, strict=True)]
                dealt[:] = _fill(others, amount)
                for rank, other, part in zip(ranks, others, dealt, strict=True):
                    loads_W[rank] = other + part
        loads_YW[layer] = loads_W


def _fill(heights: Sequence[float], amount: float) -> list[float]:
    """How much each height gets when ``amount`` is poured over them."""
    level, poured = 0.0, 0.0
    for count, height in enumerate(sorted(heights), start=1):
        poured += height
        candidate = (amount + poured) / count
        if count > 1 and height >= level:
            break
        level = candidate
    return [max(0.0, level - height) for height in heights]


def transfer_copies(
    replicas: Replicas, owners_YE: Ids, topology: Topology
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of each layer, copies through its busiest rank's link inside and its busiest node's across.

    An expert crosses to a node once; the lowest of its new holders there passes it on.
    """
    num_layers, world_size = len(owners_YE), topology.world_size
    node_W = np.array(topology.node_of_rank, dtype=np.int64)
    num_nodes = topology.num_nodes
    layer, rank = replicas.layer.astype(np.int64), replicas.rank.astype(np.int64)
    owner = owners_YE[replicas.layer, replicas.expert].astype(np.int64)
    node, home = node_W[rank], node_W[owner]
    group = (layer * owners_YE.shape[1] + replicas.expert) * num_nodes + node
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    arrives = np.zeros(len(layer), dtype=bool)
    arrives[first] = True
    crosses = arrives & (node != home)
    source = np.where((node == home) | arrives, owner, rank[first][group])

    def busiest(places: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
        counts = np.bincount(places, minlength=num_layers * width).reshape(num_layers, width)
        most: npt.NDArray[np.int64] = counts.max(1)
        return most

    rank_Y = np.maximum(
        busiest(layer * world_size + rank, world_size),
        busiest(layer * world_size + source, world_size),
    )
    node_Y = np.maximum(
        busiest((layer * num_nodes + node)[crosses], num_nodes),
        busiest((layer * num_nodes + home)[crosses], num_nodes),
    )
    return rank_Y, node_Y


def exposed_s(replicas: Replicas, owners_YE: Ids, topology: Topology, costs: StepCosts) -> Seconds:
    """Seconds of each layer's gather and reduction that attention does not hide, ``[Y]``."""
    if not len(replicas):
        return np.zeros(len(owners_YE))
    rank_Y, node_Y = transfer_copies(replicas, owners_YE, topology)
    pairs = zip(rank_Y.tolist(), node_Y.tolist(), strict=True)
    return np.array([costs.exposed_s(rank, node, topology) for rank, node in pairs])


def predicted_layer_s(
    loads_YE: Loads,
    owners_YE: Ids,
    replicas: Replicas,
    topology: Topology,
    costs: StepCosts,
    *,
    levelled: bool = True,
) -> Seconds:
    """Seconds of each layer's experts, waiting and exposed transfers included, ``[Y]``."""
    loads_YW = rank_loads(loads_YE, owners_YE, replicas, topology.world_size, levelled=levelled)
    waits_Y: Seconds = loads_YW.max(1) * costs.slot_s
    return waits_Y + exposed_s(replicas, owners_YE, topology, costs)


def predicted_step_s(
    loads_YE: Loads,
    owners_YE: Ids,
    replicas: Replicas,
    topology: Topology,
    costs: StepCosts,
    *,
    levelled: bool = True,
) -> float:
    """``predicted_layer_s`` over all layers, added in their order."""
    layers = predicted_layer_s(loads_YE, owners_YE, replicas, topology, costs, levelled=levelled)
    return math.fsum(layers.tolist())
