"""Shadowing (FasterMoE, PPoPP 2022): hot experts go to all ranks once the gate has decided."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from collectives.placement import Placement
from collectives.topology import Topology
from hecate.config import Config
from hecate.planner.costs import StepCosts
from hecate.planner.load import Counts
from hecate.planner.policies.protocol import Policy, Reckoning
from hecate.planner.quotas import Rule, route


class ShadowingConfig(Config):
    """``dispatch``: how slots of shadowed experts are dealt; FasterMoE's own is ``even``.

    ``most_shadows``: the most experts of a layer that are shadowed, memory permitting.
    """

    dispatch: Rule = "weighted"
    most_shadows: int = Field(default=64, ge=0)


class Shadowing(Reckoning, Policy):
    """Nothing is copied before the counts are known, and so nothing is copied in vain.

    Shadows are added while the cost model, busiest rank's slots and the broadcasts that nothing
    hides, finds a faster layer.
    """

    name = "shadowing"

    def __init__(self, config: ShadowingConfig, costs: StepCosts, topology: Topology) -> None:
        self._config, self.costs, self.topology = config, costs, topology

    def after_gate(self, layer: int, counts_WE: Counts, placement: Placement) -> Placement:
        owner_E = [ranks[0] for ranks in placement.holders]
        counts_E = counts_WE.sum(0)
        fixed_W = np.bincount(owner_E, counts_E, minlength=placement.world_size).astype(np.int64)
        local_W = np.zeros(placement.world_size, dtype=np.int64)
        best, best_s = 0, self._busiest(fixed_W, local_W) * self.costs.slot_s
        shadows: list[int] = []
        most = min(self._config.most_shadows, self.costs.slots_per_rank, placement.num_chunks)
        while len(shadows) < most:
            busiest = int(np.argmax(fixed_W + local_W))
            own = [e for e, r in enumerate(owner_E) if r == busiest and e not in shadows]
            expert = max(own, key=lambda e: (counts_E[e], -e), default=-1)
            if expert < 0 or not counts_E[expert]:
                break
            shadows.append(expert)
            fixed_W[busiest] -= counts_E[expert]
            local_W += counts_WE[:, expert]
            taken_s = self._busiest(fixed_W, local_W) * self.costs.slot_s
            taken_s += len(shadows) * self.costs.late_copy_s(self.topology)
            if taken_s < best_s:
                best, best_s = len(shadows), taken_s
        if not best:
            return placement
        everyone = tuple(range(placement.world_size))
        holders = list(placement.holders)
        for expert in shadows[:best]:
            holders[expert] = everyone
        return Placement(tuple(holders), placement.world_size)

    def _busiest(self, fixed_W: Counts, local_W: Counts) -> int:
        """Slots of the busiest rank; what all ranks hold fills the others up where it may."""
        if self._config.dispatch == "even":
            return int((fixed_W + local_W).max())
        mean = -(-int(fixed_W.sum() + local_W.sum()) // len(fixed_W))
        return max(mean, int(fixed_W.max()))

    def route(self, counts_WE: Counts, placement: Placement) -> Counts:
        return route(counts_WE, placement, self.topology.node_of_rank, rule=self._config.dispatch)
