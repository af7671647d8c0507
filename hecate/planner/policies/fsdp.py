"""Fully sharded data parallelism: every rank gathers every expert, and no token travels."""

from __future__ import annotations

from collections.abc import Sequence

from collectives.placement import Placement
from hecate.config import Config
from hecate.planner.copies import StepCosts
from hecate.planner.load import Counts, LoadWindow
from hecate.planner.policies.protocol import Policy
from hecate.planner.quotas import route


class FsdpConfig(Config):
    """Nothing to set."""


class Fsdp(Policy):
    """All experts everywhere: balance by the tokens' own, for the bytes of the whole layer."""

    name = "fsdp"

    def __init__(self, config: FsdpConfig, costs: StepCosts, node_of_rank: Sequence[int]) -> None:
        self._node_of_rank = tuple(node_of_rank)

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        everyone = tuple(range(len(self._node_of_rank)))
        return tuple(Placement((everyone,) * own.num_chunks, len(everyone)) for own in owners)

    def route(self, counts_WE: Counts, placement: Placement) -> Counts:
        return route(counts_WE, placement, self._node_of_rank, rule="even")
