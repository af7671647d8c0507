"""Copies one by one, each from the busiest rank, as long as the layer gets faster. Pure.

For worlds of few ranks: plain numbers beat arrays there, and the search looks at every rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from collectives.topology import Topology
from hecate.planner.costs import StepCosts
from hecate.planner.travel import Copy, Travel

LEAST_SLOTS = 1.0  # that a copy must take over
LEAST_SHARE = 1 / 64  # of the mean load: what is less is noise of the prediction


class LayerSearch:
    """One layer: who computes how much, what travels, and the fastest point reached."""

    def __init__(
        self,
        loads_E: Sequence[float],
        owners_E: Sequence[int],
        topology: Topology,
        costs: StepCosts,
        *,
        slots_per_rank: int,
        send_budget: int,
        overlap_experts: int,
    ) -> None:
        world_size = topology.world_size
        self._topology, self._costs, self._owners_E = topology, costs, owners_E
        self._slots, self._sends, self._most = slots_per_rank, send_budget, overlap_experts
        self._parts: list[dict[int, float]] = [{} for _ in range(world_size)]
        self._loads_W = [0.0] * world_size
        for expert, (load, owner) in enumerate(zip(loads_E, owners_E, strict=True)):
            self._parts[owner][expert] = load
            self._loads_W[owner] += load
        self._least = max(LEAST_SLOTS, LEAST_SHARE * sum(self._loads_W) / world_size)
        self._travel = Travel(owners_E, topology, costs)

    def run(self) -> list[Copy]:
        """The copies up to the point at which the layer is predicted to be fastest."""
        slot_s = self._costs.slot_s
        even_s = sum(self._loads_W) / len(self._loads_W) * slot_s
        best_s, best = max(self._loads_W) * slot_s, 0
        while self._relieve():
            transfers_s = self._travel.exposed_s()
            now_s = max(self._loads_W) * slot_s + transfers_s
            if now_s < best_s:
                best_s, best = now_s, len(self._travel.copies)
            # further copies only add to the transfers
            if even_s * (1 + LEAST_SHARE) + transfers_s >= best_s:
                break
        return self._travel.copies[:best]

    def _relieve(self) -> bool:
        """Take load off the busiest rank: to a rank that holds the expert too, or by one copy.

        Of the ranks that can, the least busy one takes it. False where none can.
        """
        loads_W = self._loads_W
        busiest = max(loads_W)
        source = loads_W.index(busiest)
        shared = self._shared(source)
        room = []
        for target in sorted(range(len(loads_W)), key=loads_W.__getitem__):
            surplus = (busiest - loads_W[target]) / 2
            if surplus < self._least:
                break
            theirs = self._parts[target]
            for expert in shared:
                if expert in theirs:
                    self._shift(expert, source, target, surplus)
                    return True
            if self._travel.taken_W[target] < self._slots:
                room.append((target, surplus))
        for target, surplus in room:
            found = self._expert_for(source, target, surplus)
            if found >= 0:
                self._shift(found, source, target, surplus)
                self._travel.send(found, target)
                return True
        return False

    def _shared(self, source: int) -> list[int]:
        """The copied experts of which ``source`` has slots, those of most first."""
        parts = self._parts[source]
        there = [expert for expert in self._travel.experts if parts.get(expert, 0.0) >= LEAST_SLOTS]
        return sorted(there, key=lambda expert: (-parts[expert], expert))

    def _expert_for(self, source: int, target: int, surplus: float) -> int:
        """The smallest part that covers the surplus, or else the largest; -1 where none may go."""
        travel = self._travel
        best, best_key = -1, (2, 0.0, 0)
        for expert, part in self._parts[source].items():
            owner = self._owners_E[expert]
            if part < LEAST_SLOTS or target == owner or (expert, target) in travel.held:
                continue
            if expert not in travel.experts and len(travel.experts) >= self._most:
                continue
            if travel.crosses(expert, target) and travel.sent_from(owner) >= self._sends:
                continue
            key = (0, part, expert) if part >= surplus else (1, -part, expert)
            if key < best_key:
                best, best_key = expert, key
        return best

    def _shift(self, expert: int, source: int, target: int, surplus: float) -> None:
        amount = min(self._parts[source][expert], surplus)
        self._parts[source][expert] -= amount
        self._parts[target][expert] = self._parts[target].get(expert, 0.0) + amount
        self._loads_W[source] -= amount
        self._loads_W[target] += amount
