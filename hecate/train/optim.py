"""Optimizers and learning-rate schedules over dense shards and owned experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from hecate.config import Config
from hecate.train.moments import MOMENTS
from hecate.train.muon import MOMENTUM, Matrices, Muon, by_muon


class MuonConfig(Config):
    """How Muon takes a matrix: see ``hecate.train.muon``. ``dtype``: of its iterations."""

    momentum: float = Field(default=0.95, ge=0, lt=1)
    newton_schulz_steps: int = Field(default=5, ge=1)
    dtype: Literal["bfloat16", "masters"] = "bfloat16"


class OptimizerConfig(Config):
    """AdamW (1711.05101) or Muon; weight decay acts on matrices and experts, never on vectors.

    ``muon`` makes the updates of dense matrices, and of each matrix of each expert, orthogonal;
    embeddings, head, routers and vectors go by AdamW. Its updates have the size of AdamW's
    (2502.16982), so that both go by one learning rate and weight decay.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    muon: MuonConfig = MuonConfig()

    @model_validator(mode="after")
    def _has_effect(self) -> OptimizerConfig:
        if self.kind != "muon" and self.muon != MuonConfig():
            raise ValueError(
                f"muon is set, but kind is {self.kind}; set kind to muon or leave it out"
            )
        return self


class ScheduleConfig(Config):
    """The learning rate over the run, as a factor of ``optimizer.learning_rate``.

    ``cosine`` falls from 1 to ``final_factor`` along half a cosine after the warm-up; ``wsd``
    (warm-up, stable, decay; 2404.06395) stays at 1 and falls linearly over the last
    ``decay_fraction`` of the steps; ``linear`` falls in one line from the warm-up to the end;
    ``constant`` stays at 1.
    """

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    final_factor: float = Field(default=0.1, ge=0, le=1)
    decay_fraction: float = Field(default=0.2, gt=0, le=1)


def learning_rate_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """The factor of optimizer step ``step`` (from 0) of ``steps``."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return 1.0
    span = max(1, steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    if config.kind == "linear":
        return 1.0 - (1 - config.final_factor) * progress
    if config.kind == "cosine":
        return config.final_factor + (1 - config.final_factor) * 0.5 * (
            1 + math.cos(math.pi * progress)
        )
    decay_steps = max(1, round(steps * config.decay_fraction))
    into = step - (steps - decay_steps)
    if into <= 0:
        return 1.0
    return 1.0 - (1 - config.final_factor) * min(1.0, into / decay_steps)


Role = Literal["matrix", "embedding", "router", "vector", "expert", "other"]


def role_of(
    name: str,
    parameter: nn.Parameter,
    embeddings: Iterable[nn.Parameter],
    routers: Iterable[nn.Parameter] = (),
) -> Role:
    """What an optimizer may do to a parameter: Muon, say, is for matrices and experts alone."""
    if any(parameter is embedding for embedding in embeddings):
        return "embedding"
    if any(parameter is router for router in routers):
        return "router" if parameter.ndim >= 2 else "vector"
    if name.endswith(".chunks"):
        return "expert"
    if parameter.ndim < 2:
        return "vector"
    return "matrix" if parameter.ndim == 2 else "other"


def build_optimizer(
    config: OptimizerConfig,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    embeddings: Iterable[nn.Parameter],
    *,
    routers: Iterable[nn.Parameter] = (),
    matrices: Mapping[str, Matrices] = MappingProxyType({}),
) -> torch.optim.Optimizer:
    """One parameter group for each role.

    Dense shards without an element here are left out; experts stay even where this rank owns none
    of a layer, since it may come to own some. ``matrices``: what lies in experts, by their names.
    """
    embeddings, routers = tuple(embeddings), tuple(routers)
    groups: dict[Role, list[nn.Parameter]] = {}
    inside: dict[int, Matrices] = {}
    for name, parameter in named_parameters:
        role = role_of(name, parameter, embeddings, routers)
        if parameter.requires_grad and (parameter.numel() or role == "expert"):
            groups.setdefault(role, []).append(parameter)
            if name in matrices:
                inside[id(parameter)] = matrices[name]
    return OPTIMIZERS[config.kind](
        config,
        [
            {
                "params": parameters,
                "role": role,
                "weight_decay": 0.0 if role == "vector" else config.weight_decay,
            }
            for role, parameters in groups.items()
        ],
        inside,
    )


Groups = list[dict[str, Any]]


def _adamw_settings(config: OptimizerConfig) -> dict[str, Any]:
    return {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "fused": True,
    }


def _adamw(
    config: OptimizerConfig, groups: Groups, _: Mapping[int, Matrices]
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, **_adamw_settings(config))


def _muon(
    config: OptimizerConfig, groups: Groups, matrices: Mapping[int, Matrices]
) -> torch.optim.Optimizer:
    for group in groups:
        group["moments"] = (MOMENTUM,) if by_muon(group["role"]) else MOMENTS
    return Muon(
        groups,
        matrices=matrices,
        momentum=config.muon.momentum,
        newton_schulz_steps=config.muon.newton_schulz_steps,
        dtype=torch.bfloat16 if config.muon.dtype == "bfloat16" else None,
        defaults=_adamw_settings(config),
    )


OPTIMIZERS: dict[
    str, Callable[[OptimizerConfig, Groups, Mapping[int, Matrices]], torch.optim.Optimizer]
] = {"adamw": _adamw, "muon": _muon}


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
