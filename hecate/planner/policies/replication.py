"""Replication (FlexMoE, SIGMOD 2023): replicas that last, expanded and shrunk as loads drift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from collectives.placement import Placement
from collectives.topology import Topology
from hecate.config import Config
from hecate.planner.costs import StepCosts
from hecate.planner.load import Counts, Loads, LoadWindow
from hecate.planner.materialization import materialize_by_time
from hecate.planner.plan import owners_table, replicas_to_placements
from hecate.planner.policies.protocol import Policy, Reckoning
from hecate.planner.quotas import Rule, route


class ReplicationConfig(Config):
    """``slack``: how much busier than with the best replicas a layer may be before any change.

    ``changes_per_step``: replicas of a layer that come or go in one step; FlexMoE makes them one by
    one beside training. ``dispatch``: how slots are dealt to holders.
    """

    slack: float = Field(default=1.05, ge=1)
    changes_per_step: int = Field(default=4, ge=1)
    dispatch: Rule = "weighted"


class Replication(Reckoning, Policy):
    """Replicas stay from step to step, in reserved slots, until the load calls for others.

    Their gradients meet at the owner and its weights come back, which moves what an all-reduce
    between the holders would. What is held is this object's state; it begins with no replicas.
    """

    name = "replication"

    def __init__(self, config: ReplicationConfig, costs: StepCosts, topology: Topology) -> None:
        self._config, self.costs, self.topology = config, costs, topology
        self._held: dict[int, Placement] = {}

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        if not loads.has_history:
            return owners
        for layer, (loads_E, own) in enumerate(zip(loads.predict(), owners, strict=True)):
            held = self._held.get(layer, own)
            if not held.contains(own):
                held = own
            self._held[layer] = self._adjusted(loads_E[: own.num_chunks], own, held)
        return tuple(self._held[layer] for layer in range(len(owners)))

    def state(self) -> dict[str, Any]:
        held = [self._held[layer].holders for layer in range(len(self._held))]
        return {"holders": [[list(ranks) for ranks in holders] for holders in held]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._held = {
            layer: Placement(tuple(tuple(ranks) for ranks in holders), self.topology.world_size)
            for layer, holders in enumerate(state["holders"])
        }

    def _adjusted(self, loads_E: Loads, own: Placement, held: Placement) -> Placement:
        wanted = self._wanted(loads_E, own)
        if self._busiest(loads_E, held) <= self._config.slack * self._busiest(loads_E, wanted):
            return held
        pairs = {(e, r) for e, ranks in enumerate(held.holders) for r in ranks}
        target = {(e, r) for e, ranks in enumerate(wanted.holders) for r in ranks}
        # Shrink the coldest, expand the hottest: each new one takes the slot of one that leaves.
        leaving = sorted(pairs - target, key=lambda pair: (loads_E[pair[0]], pair))
        coming = sorted(target - pairs, key=lambda pair: (-loads_E[pair[0]], pair))
        room = {rank: self._room(pairs, own, rank) for rank in range(own.world_size)}
        for expert, rank in coming[: self._config.changes_per_step]:
            if room[rank] <= 0:
                gone = next((pair for pair in leaving if pair[1] == rank), None)
                if gone is None:
                    continue
                leaving.remove(gone)
                pairs.remove(gone)
            else:
                room[rank] -= 1
            pairs.add((expert, rank))
        if not coming:
            pairs -= set(leaving[: self._config.changes_per_step])
        holders = [tuple(sorted(r for e, r in pairs if e == x)) for x in range(own.num_chunks)]
        return Placement(tuple(holders), own.world_size)

    def _wanted(self, loads_E: Loads, own: Placement) -> Placement:
        """The replicas with which a step would be fastest, if they were there for nothing else."""
        replicas = materialize_by_time(
            loads_E[None],
            owners_table((own,), own.num_chunks),
            self.topology,
            self.costs,
            overlap_experts=own.num_chunks,
            slots_per_rank=self.costs.slots_per_rank,
        )
        return replicas_to_placements((own,), replicas)[0]

    def _room(self, pairs: set[tuple[int, int]], own: Placement, rank: int) -> int:
        copies = sum(1 for _, r in pairs if r == rank) - len(own.chunks_on(rank))
        return self.costs.slots_per_rank - copies

    def _busiest(self, loads_E: Loads, placement: Placement) -> int:
        """Slots of the busiest rank, every rank being the source of an equal part."""
        counts_WE = np.zeros((placement.world_size, placement.num_chunks), dtype=np.int64)
        each_E, more_E = np.divmod(np.rint(loads_E).astype(np.int64), placement.world_size)
        counts_WE += each_E
        counts_WE[0] += more_E
        quotas_WEW = route(
            counts_WE, placement, self.topology.node_of_rank, rule=self._config.dispatch
        )
        return int(quotas_WEW.sum((0, 1)).max())

    def route(self, counts_WE: Counts, placement: Placement) -> Counts:
        return route(counts_WE, placement, self.topology.node_of_rank, rule=self._config.dispatch)
