"""Hot experts on every rank, so that their slots stay where they are. Pure.

Beyond 2502.02581: a copy does not only level loads. A slot whose expert is on its own rank does not
travel, neither forward nor backward; with many slots to an expert, that saves more than its weights
and their gradient take. For worlds of few ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

from collectives.topology import Topology
from hecate.planner.costs import StepCosts
from hecate.planner.travel import Copy, Travel


def bring_nearer(
    loads_E: Sequence[float],
    owners_E: Sequence[int],
    copies: Sequence[Copy],
    topology: Topology,
    costs: StepCosts,
    *,
    slots_per_rank: int,
    send_budget: int,
    overlap_experts: int,
) -> list[Copy]:
    """``copies`` and those that bring the hottest experts to all ranks, as many as pay.

    ``loads_E``: predicted slots, taken to come from all ranks alike. The layer's exchange lasts as
    long as the rank that sends and receives most; with each expert more of the hottest it gets
    shorter and the gather longer. Of all points the fastest is kept, the first of equals. Budgets
    as in ``materialize_by_time``.
    """
    travel = Travel(owners_E, topology, costs)
    for expert, rank in copies:
        travel.send(expert, rank)
    exchange = _Exchange(loads_E, owners_E, travel, topology, costs)
    best_s, best = exchange.seconds() + travel.exposed_s(), len(travel.copies)
    least_s = best_s
    for expert in sorted(range(len(loads_E)), key=lambda e: (-loads_E[e], e)):
        absent = [
            rank
            for rank in range(topology.world_size)
            if rank != owners_E[expert] and (expert, rank) not in travel.held
        ]
        if not absent or not loads_E[expert]:
            continue
        if expert not in travel.experts and len(travel.experts) >= overlap_experts:
            continue
        if any(travel.taken_W[rank] >= slots_per_rank for rank in absent):
            continue
        nodes = {topology.node_of_rank[rank] for rank in absent if travel.crosses(expert, rank)}
        if travel.sent_from(owners_E[expert]) + len(nodes) > send_budget:
            continue
        exchange.without(expert)
        for rank in absent:
            travel.send(expert, rank)
        exposed_s = travel.exposed_s()
        now_s = exchange.seconds() + exposed_s
        if now_s < best_s:
            best_s, best = now_s, len(travel.copies)
        if exposed_s >= least_s:  # not even without any exchange
            break
        least_s = min(least_s, best_s)
    return travel.copies[:best]


class _Exchange:
    """Seconds that each rank sends and receives slots of experts that are not on all ranks."""

    def __init__(
        self,
        loads_E: Sequence[float],
        owners_E: Sequence[int],
        travel: Travel,
        topology: Topology,
        costs: StepCosts,
    ) -> None:
        world_size, node = topology.world_size, topology.node_of_rank
        self._loads_E, self._owners_E, self._travel = loads_E, owners_E, travel
        self._row_s = [
            [
                0.0 if a == b else costs.row_s if node[a] == node[b] else costs.row_across_s
                for b in range(world_size)
            ]
            for a in range(world_size)
        ]
        self._node = node
        self._busy_W = [0.0] * world_size
        alone_W = [0.0] * world_size
        for expert, (load, owner) in enumerate(zip(loads_E, owners_E, strict=True)):
            if expert in travel.experts:
                self._add(expert, 1.0)
            else:
                alone_W[owner] += load
        for owner, load in enumerate(alone_W):
            self._deal(load, (owner,), 1.0)

    def seconds(self) -> float:
        return max(self._busy_W)

    def without(self, expert: int) -> None:
        """Its slots stay on their ranks; called before ``travel`` has all its copies."""
        self._add(expert, -1.0)

    def _add(self, expert: int, sign: float) -> None:
        owner, held = self._owners_E[expert], self._travel.held
        ranks = range(len(self._busy_W))
        holders = tuple(rank for rank in ranks if rank == owner or (expert, rank) in held)
        self._deal(self._loads_E[expert], holders, sign)

    def _deal(self, load: float, holders: Sequence[int], sign: float) -> None:
        """Each rank's slots of ``load`` go to the nearest of ``holders``, to all of these alike."""
        each = sign * load / len(self._busy_W)
        if not each:
            return
        for source in range(len(self._busy_W)):
            if source in holders:
                continue
            near = [r for r in holders if self._node[r] == self._node[source]] or holders
            for rank in near:
                taken_s = each / len(near) * self._row_s[source][rank]
                self._busy_W[source] += taken_s
                self._busy_W[rank] += taken_s
