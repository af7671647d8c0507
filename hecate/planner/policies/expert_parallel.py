"""Expert parallelism: each expert stays where it is, and tokens travel to it."""

from __future__ import annotations

from collectives.placement import Placement
from hecate.planner.load import Counts, LoadWindow
from hecate.planner.quotas import route


class ExpertParallel:
    """``Policy`` that copies nothing and moves nothing: the baseline of every other one."""

    name = "expert_parallel"

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        return owners

    def new_owners(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        return owners

    def route(self, counts_WE: Counts, placement: Placement) -> Counts:
        return route(counts_WE, placement, (0,) * placement.world_size, rule="even")
