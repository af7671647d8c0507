"""A policy by its name, with what it reckons with measured here or remembered."""

from __future__ import annotations

import typing
from pathlib import Path

import torch
from torch import nn

from hecate.config import nearest_name
from hecate.errors import ConfigError
from hecate.fssdp.config import ExpertsConfig
from hecate.fssdp.measure import Costs, measured_costs
from hecate.mesh import ParallelContext
from hecate.models.families import MoELayer
from hecate.planner.policies import (
    ExpertParallel,
    Fsdp,
    Fssdp,
    Policy,
    Replication,
    Shadowing,
    Swapping,
)

POLICY_NAMES: tuple[str, ...] = typing.get_args(ExpertsConfig.model_fields["policy"].annotation)


def choose_policy(
    name: str,
    config: ExpertsConfig,
    module: nn.Module,
    layer: MoELayer,
    ctx: ParallelContext,
    *,
    dtype: torch.dtype,
    compute_dtype: torch.dtype,
    folder: Path,
) -> Policy:
    """The policy called ``name``, as ``config`` sets it; collective over all ranks.

    Costs are those of ``layer``, whose experts are ``module``'s; ``folder`` remembers them. Raises
    ``ConfigError`` for a name that no policy has.
    """
    if name not in POLICY_NAMES:
        near = nearest_name(name, POLICY_NAMES)
        raise ConfigError(
            "no policy has this name",
            got=name,
            expected="one of " + ", ".join(POLICY_NAMES),
            fix=f"did you mean {near}?" if near else "choose one of these, or pass a Policy",
        )
    if name == "expert_parallel":
        return ExpertParallel()
    costs = measured_costs(
        config.costs, module, layer, ctx, dtype=dtype, compute_dtype=compute_dtype, folder=folder
    )
    return policy_of(name, config, costs)


def policy_of(name: str, config: ExpertsConfig, costs: Costs) -> Policy:
    """A fresh policy of a name in ``POLICY_NAMES``, which reckons with ``costs``."""
    match name:
        case "expert_parallel":
            return ExpertParallel()
        case "shadowing":
            return Shadowing(config.shadowing, costs.step, costs.topology)
        case "swapping":
            return Swapping(config.swapping, costs.step, costs.topology)
        case "replication":
            return Replication(config.replication, costs.step, costs.topology)
        case "fsdp":
            return Fsdp(config.fsdp, costs.step, costs.topology)
        case _:
            return Fssdp(config.fssdp, costs.step, costs.topology)
