"""Optimizers and learning-rate schedules over dense shards and owned experts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from hecate.config import Config


class OptimizerConfig(Config):
    """AdamW (1711.05101); weight decay acts on matrices and experts, never on vectors."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)


class ScheduleConfig(Config):
    """The learning rate over the run, as a factor of ``optimizer.learning_rate``.

    ``cosine`` falls from 1 to ``final_factor`` along half a cosine after the warm-up; ``wsd``
    (warm-up, stable, decay; 2404.06395) stays at 1 and falls linearly over the last
    ``decay_fraction`` of the steps; ``constant`` stays at 1.
    """

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    final_factor: float = Field(default=0.1, ge=0, le=1)
    decay_fraction: float = Field(default=0.2, gt=0, le=1)


def learning_rate_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """The factor of optimizer step ``step`` (from 0) of ``steps``."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return 1.0
    if config.kind == "cosine":
        span = max(1, steps - config.warmup_steps)
        progress = min(1.0, (step - config.warmup_steps) / span)
        return config.final_factor + (1 - config.final_factor) * 0.5 * (
            1 + math.cos(math.pi * progress)
        )
    decay_steps = max(1, round(steps * config.decay_fraction))
    into = step - (steps - decay_steps)
    if into <= 0:
        return 1.0
    return 1.0 - (1 - config.final_factor) * min(1.0, into / decay_steps)


Role = Literal["matrix", "embedding", "vector", "expert"]


def role_of(name: str, parameter: nn.Parameter, embeddings: Iterable[nn.Parameter]) -> Role:
    """What an optimizer may do to a parameter: Muon, say, is for matrices and experts alone."""
    if any(parameter is embedding for embedding in embeddings):
        return "embedding"
    if name.endswith(".chunks"):
        return "expert"
    return "matrix" if parameter.ndim >= 2 else "vector"


def build_optimizer(
    config: OptimizerConfig,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    embeddings: Iterable[nn.Parameter],
) -> torch.optim.Optimizer:
    """One parameter group for each role.

    Dense shards without an element here are left out; experts stay even where this rank owns none
    of a layer, since it may come to own some.
    """
    embeddings = tuple(embeddings)
    groups: dict[Role, list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        role = role_of(name, parameter, embeddings)
        if parameter.requires_grad and (parameter.numel() or role == "expert"):
            groups.setdefault(role, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "role": role,
                "weight_decay": 0.0 if role == "vector" else config.weight_decay,
            }
            for role, parameters in groups.items()
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
