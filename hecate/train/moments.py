"""What an optimizer keeps of a parameter, there from the first time anyone asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's; a parameter group that says nothing has these."""


def moments_of(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, names: Sequence[str] = MOMENTS
) -> dict[str, Any]:
    """The optimizer's own state of one parameter: ``step`` and ``names``, zeros if new."""
    moments: dict[str, Any] = optimizer.state[parameter]
    if "step" not in moments:
        moments["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
    for moment in names:
        if moment not in moments:
            moments[moment] = torch.zeros_like(parameter.detach())
    return moments
