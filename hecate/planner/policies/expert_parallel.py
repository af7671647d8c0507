"""Expert parallelism: each expert stays where it is, and tokens travel to it."""

from __future__ import annotations

from collectives.placement import Placement
from hecate.planner.load import Counts
from hecate.planner.policies.protocol import Policy
from hecate.planner.quotas import route


class ExpertParallel(Policy):
    """Copies nothing and moves nothing: the baseline of every other one.

    May be given what every policy is given, and looks at none of it.
    """

    name = "expert_parallel"

    def __init__(self, *_: object) -> None:
        pass

    def route(self, counts_WE: Counts, placement: Placement) -> Counts:
        return route(counts_WE, placement, (0,) * placement.world_size, rule="even")
