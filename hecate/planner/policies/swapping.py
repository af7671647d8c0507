"""Swapping (SmartMoE, ATC 2023): experts change places from time to time, nothing is copied."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from collectives.placement import Placement
from collectives.topology import Topology
from hecate.config import Config
from hecate.planner.costs import StepCosts
from hecate.planner.load import Counts, Loads, LoadWindow
from hecate.planner.policies.protocol import Policy, Reckoning
from hecate.planner.quotas import route
from hecate.planner.sharding import Ids, net_gain_slots, shard_by_load, swap_by_load


class SwappingConfig(Config):
    """``every``: steps between two looks at who owns what; 25 is what SmartMoE found best.

    ``copies_per_move``: what moving an expert takes, in copies of one: weights, moments and master
    weights go along.
    """

    every: int = Field(default=25, ge=1)
    copies_per_move: float = Field(default=4.0, ge=0)


class Swapping(Reckoning, Policy):
    """Every rank keeps its number of experts of each layer; moves must pay until the next look.

    Of a search by swaps and a placement from scratch the better one is taken.
    """

    name = "swapping"

    def __init__(self, config: SwappingConfig, costs: StepCosts, topology: Topology) -> None:
        self._config, self.costs, self.topology = config, costs, topology

    def new_owners(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        if (step + 1) % self._config.every or not loads.has_history:
            return owners
        result = list(owners)
        for layer, (loads_E, own) in enumerate(zip(loads.predict(), owners, strict=True)):
            old_E = np.array([own.owners], dtype=np.int32)
            new_E = self._best(loads_E[None, : own.num_chunks], old_E)
            if new_E is not old_E:
                result[layer] = Placement.from_owners(new_E[0].tolist(), own.world_size)
        moved = any(new is not old for new, old in zip(result, owners, strict=True))
        return tuple(result) if moved else owners

    def _best(self, loads_E: Loads, old_E: Ids) -> Ids:
        world_size = self.topology.world_size
        move_s = self._config.copies_per_move * self.costs.late_copy_s(self.topology)
        move_slots = move_s / (self.costs.slot_s * self._config.every)
        swapped = swap_by_load(loads_E, old_E, world_size, move_slots=move_slots)
        dealt = shard_by_load(
            loads_E, old_E, self.topology.node_of_rank, overlap_experts=0, move_slots=move_slots
        )
        gains = [
            net_gain_slots(loads_E, old_E, new_E, 0, world_size, move_slots)
            for new_E in (swapped, dealt)
        ]
        return swapped if gains[0] >= gains[1] else dealt

    def route(self, counts_WE: Counts, placement: Placement) -> Counts:
        return route(counts_WE, placement, self.topology.node_of_rank, rule="even")
