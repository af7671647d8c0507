"""The strategies that can be simulated: the runtime's own policies, and the paper's settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from collectives.topology import Topology
from hecate.config import nearest_name
from hecate.errors import ConfigError
from hecate.planner.costs import StepCosts
from hecate.planner.policies import (
    ExpertParallel,
    ForceBalanced,
    Fsdp,
    FsdpConfig,
    Fssdp,
    FssdpConfig,
    Policy,
    Replication,
    ReplicationConfig,
    Shadowing,
    ShadowingConfig,
    Swapping,
    SwappingConfig,
)


@dataclass(frozen=True)
class Strategy:
    """A policy and what it may keep.

    ``policy``: its name among ``hecate.planner.policies.POLICIES``. ``paper``: copies by Algorithm
    1, owners by Algorithm 2 and even dispatch, as 2502.02581 has them. ``materialize`` and
    ``reshard_every`` switch its two components off with ``False`` and 0.
    """

    name: str
    policy: str
    paper: bool = False
    rematerialize: bool = False
    materialize: bool = True
    reshard_every: int = 10


def paper_strategy(
    name: str,
    *,
    materialize: bool = True,
    rematerialize: bool = False,
    reshard_every: int = 100,
) -> Strategy:
    """FSSDP by the letter of the paper, whose evaluation re-shards every 100 steps."""
    return Strategy(name, "fssdp", True, rematerialize, materialize, reshard_every)


CEILING = "force_balanced"
STRATEGIES: dict[str, Strategy] = {
    each.name: each
    for each in (
        Strategy("expert_parallel", "expert_parallel"),
        Strategy("fssdp", "fssdp"),
        Strategy("fssdp_rematerialized", "fssdp", rematerialize=True),
        paper_strategy("fssdp_paper"),
        paper_strategy("fssdp_paper_rematerialized", rematerialize=True),
        Strategy("shadowing", "shadowing"),
        Strategy("swapping", "swapping"),
        Strategy("replication", "replication"),
        Strategy("fsdp", "fsdp"),
        Strategy(CEILING, CEILING),
    )
}


def strategy_named(name: str) -> Strategy:
    """Raises ``ConfigError``, with the nearest name, for one that is not there."""
    if name not in STRATEGIES:
        near = nearest_name(name, STRATEGIES)
        raise ConfigError(
            f"there is no policy {name} to simulate",
            got=name,
            expected=f"one of {', '.join(STRATEGIES)}",
            fix=f"did you mean {near}?" if near else "choose one of these",
        )
    return STRATEGIES[name]


def build_policy(strategy: Strategy, costs: StepCosts, topology: Topology) -> Policy:
    """The policy that a run with these settings would have."""
    match strategy.policy:
        case "expert_parallel":
            return ExpertParallel()
        case "force_balanced":
            return ForceBalanced()
        case "fsdp":
            return Fsdp(FsdpConfig(), costs, topology)
        case "shadowing":
            return Shadowing(ShadowingConfig(), costs, topology)
        case "swapping":
            return Swapping(SwappingConfig(), costs, topology)
        case "replication":
            return Replication(ReplicationConfig(), costs, topology)
    config = FssdpConfig(reshard_every=strategy.reshard_every)
    if strategy.paper:
        config = FssdpConfig(
            reshard_every=strategy.reshard_every,
            materialization="paper",
            sharding="paper",
            dispatch="even",
        )
    if not strategy.materialize:
        costs = replace(costs, slots_per_rank=0)
    return Fssdp(config, costs, topology)
