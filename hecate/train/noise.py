"""The gradient noise scale (McCandlish et al., 1812.06162, section 2.2), from AdamW's moments.

A batch beyond it buys little: it is the number of tokens at which the noise in a step's gradient
is as large as the gradient itself. AdamW keeps what is needed for it, so that it costs no second
gradient and no communication but that of two sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from hecate.fssdp.norm import power_sum
from hecate.mesh import ParallelContext, naming, sum_over
from hecate.train.moments import MOMENTS


def noise_scale(
    optimizer: torch.optim.Optimizer,
    owned: Iterable[nn.Parameter],
    ctx: ParallelContext,
    *,
    updates: int,
    step_tokens: float,
) -> dict[str, float]:
    """``noise_scale_tokens`` of what AdamW steps here, or nothing where it can't be told yet.

    ``owned``: the experts of this rank; ``updates``: steps that the moments have seen; collective.
    It counts as noise whatever changes in the gradient within some ten steps, clipping included.
    It is left out while the gradient drowns in noise, and under optimizers without both moments.
    """
    first, second = (list(_moments(optimizer, name)) for name in MOMENTS)
    experts = list(owned)
    sums = torch.stack(
        [
            power_sum(first, experts, ctx.rank, power=2),
            power_sum(second, experts, ctx.rank, power=1),
        ]
    )
    with naming("the sums of the optimizer's moments", ctx.rank):
        squares, variances = sum_over(ctx.groups.control, sums).tolist()
    beta1, beta2 = optimizer.param_groups[0]["betas"] if optimizer.param_groups else (0.0, 0.0)
    ratio = noise_over_signal(squares, variances, beta1=beta1, beta2=beta2, updates=updates)
    return {"noise_scale_tokens": ratio * step_tokens} if ratio else {}


def noise_over_signal(
    squares: float, variances: float, *, beta1: float, beta2: float, updates: int
) -> float:
    """``tr(S) / |G|^2`` of a step's gradient, whose mean is ``G`` and whose covariance is ``S``.

    ``squares``: the sum of ``exp_avg ** 2``; ``variances``: of ``exp_avg_sq``. The second moment
    expects ``|G|^2 + tr(S)``, the square of the first ``|G|^2 + k tr(S)``, with ``k`` the sum of
    the squared weights of the ``updates`` gradients in it. 0 where nothing can be said.
    """
    if updates < 2 or not beta1:
        return 0.0
    forgotten = beta1**updates
    kept = (1 - beta1) / (1 + beta1) * (1 + forgotten) / (1 - forgotten)
    mean = squares / (1 - forgotten) ** 2
    both = variances / (1 - beta2**updates)
    noise, signal = (both - mean) / (1 - kept), (mean - kept * both) / (1 - kept)
    return noise / signal if noise > 0 and signal > 0 else 0.0


def _moments(
    optimizer: torch.optim.Optimizer, name: str
) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if all(moment in state for moment in MOMENTS):
                yield parameter, state[name]
