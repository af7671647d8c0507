"""A running average of the weights (EMA), beside the optimizer's moments and sharded as they are.

It begins from zeros and is divided by what its weights add up to when it is read, as Adam's moments
are: so it needs no copy of the initial weights, and says the same after any number of resumes.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from hecate.checkpoint.averaged import AVERAGE
from hecate.config import Config
from hecate.fssdp.norm import local_part
from hecate.train.moments import MOMENTS, moments_of


class EmaConfig(Config):
    """``decay`` of the average in each step, such as 0.999; 0 keeps none."""

    decay: float = Field(default=0.0, ge=0, lt=1)


def keep_average(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Let every step of ``optimizer`` take its parameters into their average."""
    for group in optimizer.param_groups:
        group["moments"] = (*group.get("moments", MOMENTS), AVERAGE)

    @torch.no_grad()
    def average(*_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                kept = local_part(moments_of(optimizer, parameter, group["moments"])[AVERAGE])
                kept.lerp_(local_part(parameter), 1 - decay)

    optimizer.register_step_post_hook(average)
