"""FSSDP: experts that the load calls for are copied for a step, owners follow slowly.

2502.02581: sparse materialization every step (section 4.2) over heterogeneous sharding that is
looked at every ``reshard_every`` steps (section 4.3).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from collectives.placement import Placement
from collectives.topology import Topology
from hecate.config import Config
from hecate.planner.calibration import calibrate
from hecate.planner.costs import StepCosts
from hecate.planner.load import Counts, Loads, LoadWindow
from hecate.planner.materialization import materialize_by_load, materialize_by_time
from hecate.planner.owners import imbalance, swap_owners
from hecate.planner.plan import Replicas, owners_table, replicas_to_placements
from hecate.planner.policies.protocol import Policy, Reckoning
from hecate.planner.quotas import Rule, route
from hecate.planner.sharding import shard_by_load


class FssdpConfig(Config):
    """What is copied for a step, and when owners change.

    ``materialization``: ``predicted`` makes the copies that shorten the predicted step, and leaves
    those that hiding would not make cheaper to ``calibrate``; ``paper`` makes those of Algorithm 1,
    the most loaded experts up to what attention hides and memory holds.
    ``reshard_every``: steps between two looks at who owns what; 0 leaves owners as they are.
    ``reshard_at``: the least imbalance over owners, max over mean of the window, at which a layer's
    owners change. ``sharding``: ``swaps`` between ranks of one layer, or by the paper's Algorithm 2
    over all layers, whose moves must gain more slots of the busiest ranks until the next look than
    ``slots_per_move`` for each expert. ``dispatch``: how slots are dealt to an expert's holders.
    ``calibrate``: more copies once the gate has decided, where they pay with nothing to hide them.
    """

    materialization: Literal["predicted", "paper"] = "predicted"
    reshard_every: int = Field(default=10, ge=0)
    reshard_at: float = Field(default=1.1, ge=1)
    sharding: Literal["swaps", "paper"] = "swaps"
    slots_per_move: float = Field(default=0.0, ge=0)
    dispatch: Rule = "weighted"
    calibrate: bool = True


MOST_SWAPS = 8


class Fssdp(Reckoning, Policy):
    """The policy of the paper, with copies that must pay for themselves."""

    name = "fssdp"
    plans_ahead = True

    def __init__(self, config: FssdpConfig, costs: StepCosts, topology: Topology) -> None:
        self._config, self.costs, self.topology = config, costs, topology
        self._owners: tuple[Placement, ...] = ()

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        self._owners = owners
        if not loads.has_history:
            return owners
        return replicas_to_placements(owners, self._copies(loads.predict(), owners))

    def _copies(self, loads_YE: Loads, owners: tuple[Placement, ...]) -> Replicas:
        num_experts = loads_YE.shape[1]
        owners_YE = owners_table(owners, num_experts)
        if self._config.materialization == "paper":
            return materialize_by_load(
                loads_YE,
                owners_YE,
                self.topology.node_of_rank,
                overlap_experts=self.costs.overlap_experts(self.topology),
                slots_per_rank=self.costs.slots_per_rank,
            )
        return materialize_by_time(
            loads_YE,
            owners_YE,
            self.topology,
            self.costs,
            overlap_experts=num_experts,
            slots_per_rank=self.costs.slots_per_rank,
            levels=not self._config.calibrate or self.costs.cheaper_ahead(self.topology),
        )

    def after_gate(self, layer: int, counts_WE: Counts, placement: Placement) -> Placement:
        if not self._config.calibrate:
            return placement
        own = self._owners[layer]
        ranks = range(placement.world_size)
        copies_W = [len(placement.chunks_on(r)) - len(own.chunks_on(r)) for r in ranks]
        return calibrate(
            counts_WE,
            placement,
            self.topology.node_of_rank,
            slots_left_W=[self.costs.slots_per_rank - copies for copies in copies_W],
            slot_s=self.costs.slot_s,
            copy_s=self.costs.late_copy_s(self.topology),
            rule=self._config.dispatch,
        )

    def new_owners(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        every = self._config.reshard_every
        if not every or (step + 1) % every or not loads.has_history:
            return owners
        predicted_YE = loads.predict()
        if self._config.sharding == "paper":
            return self._dealt(predicted_YE, owners)
        result = []
        for loads_E, own in zip(predicted_YE, owners, strict=True):
            loads_E = loads_E[: own.num_chunks]
            uneven = imbalance(loads_E, own) > self._config.reshard_at
            result.append(swap_owners(loads_E, own, most_swaps=MOST_SWAPS) if uneven else own)
        changed = any(new is not old for new, old in zip(result, owners, strict=True))
        return tuple(result) if changed else owners

    def _dealt(self, predicted_YE: Loads, owners: tuple[Placement, ...]) -> tuple[Placement, ...]:
        """Algorithm 2, whose copied-anyway experts are those that attention hides."""
        old_YE = np.full(predicted_YE.shape, -1, dtype=np.int32)
        for layer, own in enumerate(owners):
            old_YE[layer, : own.num_chunks] = own.owners
        new_YE = shard_by_load(
            predicted_YE,
            old_YE,
            self.topology.node_of_rank,
            overlap_experts=self.costs.overlap_experts(self.topology),
            move_slots=self._config.slots_per_move / self._config.reshard_every,
        )
        if new_YE is old_YE:
            return owners
        rows = zip(new_YE.tolist(), owners, strict=True)
        return tuple(
            Placement.from_owners(row[: own.num_chunks], own.world_size) for row, own in rows
        )

    def route(self, counts_WE: Counts, placement: Placement) -> Counts:
        return route(counts_WE, placement, self.topology.node_of_rank, rule=self._config.dispatch)
