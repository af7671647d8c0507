"""Fully sharded data parallelism: every rank gathers every expert, and no token travels."""

from __future__ import annotations

from collectives.placement import Placement
from collectives.topology import Topology
from hecate.config import Config
from hecate.planner.costs import StepCosts
from hecate.planner.load import Counts, LoadWindow
from hecate.planner.policies.protocol import Policy, Reckoning
from hecate.planner.quotas import route


class FsdpConfig(Config):
    """Nothing to set."""


class Fsdp(Reckoning, Policy):
    """All experts everywhere: balance by the tokens' own, for the bytes of the whole layer."""

    name = "fsdp"

    def __init__(self, config: FsdpConfig, costs: StepCosts, topology: Topology) -> None:
        self.costs, self.topology = costs, topology

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        everyone = tuple(range(self.topology.world_size))
        return tuple(Placement((everyone,) * own.num_chunks, len(everyone)) for own in owners)

    def route(self, counts_WE: Counts, placement: Placement) -> Counts:
        return route(counts_WE, placement, self.topology.node_of_rank, rule="even")
