"""The gradient noise scale, where the gradient and its noise are known."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor

from hecate.mesh import ParallelContext
from hecate.train.noise import noise_over_signal, noise_scale

STEPS = 60
EXPERTS, CHUNK = 6, 2000  # tables of experts, of which each rank owns some
DENSE = (30, 200)
RATIO = 4.0  # noise over signal
TOKENS = 512.0


def gradients(seed: int) -> torch.Tensor:
    """``[STEPS, numel]``: the same mean at every step, and noise of ``RATIO`` times its square."""
    generator = torch.Generator().manual_seed(seed)
    numel = EXPERTS * CHUNK + 2 * DENSE[0] * DENSE[1]
    mean = torch.randn(numel, generator=generator)
    noise = torch.randn(STEPS, numel, generator=generator)
    return mean + noise * RATIO**0.5


def train(ctx: ParallelContext) -> tuple[dict[str, float], dict[str, float]]:
    """The figures after 1 and after all steps; experts, a matrix in rows and one on all ranks."""
    expert, sharded, whole = gradients(seed=3).split(
        [EXPERTS * CHUNK, DENSE[0] * DENSE[1], DENSE[0] * DENSE[1]], dim=1
    )
    own = torch.arange(EXPERTS)[ctx.rank :: ctx.world_size]
    experts = nn.Parameter(torch.zeros(len(own), CHUNK))
    rows = nn.Parameter(distribute_tensor(torch.zeros(DENSE), ctx.mesh, [Shard(0)]))
    alike = nn.Parameter(torch.zeros(DENSE))
    unused = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([experts, rows, alike, unused], betas=(0.9, 0.95))
    figures = []
    for step in range(STEPS):
        experts.grad = expert[step].view(EXPERTS, CHUNK)[own]
        rows.grad = distribute_tensor(sharded[step].view(DENSE), ctx.mesh, [Shard(0)])
        alike.grad = whole[step].view(DENSE).clone()
        optimizer.step()
        figures.append(noise_scale(optimizer, [experts], ctx, updates=step + 1, step_tokens=TOKENS))
    return figures[0], figures[-1]


@pytest.mark.parametrize("world_size", [1, 3])
def test_it_is_the_noise_over_the_signal_in_tokens_on_any_number_of_ranks(world_size: int) -> None:
    results = run_ranks(train, world_size)
    assert all(first == {} for first, _ in results), "one gradient says nothing of its noise"
    (scale,) = {last["noise_scale_tokens"] for _, last in results}
    assert scale == pytest.approx(RATIO * TOKENS, rel=0.1)


def test_by_hand() -> None:
    """Gradients 3, then 1, with betas 1/2 and 3/4."""
    first = 0.5 * (0.5 * 3) + 0.5 * 1  # 1.25
    second = 0.75 * (0.25 * 9) + 0.25 * 1  # 1.9375
    mean = first / (1 - 0.5**2)  # 5/3: weights 1/3 and 2/3
    both = second / (1 - 0.75**2)  # 31/7
    kept = (1 / 3) ** 2 + (2 / 3) ** 2
    noise = (both - mean**2) / (1 - kept)
    signal = both - noise
    found = noise_over_signal(first**2, second, beta1=0.5, beta2=0.75, updates=2)
    assert found == pytest.approx(noise / signal)


def test_nothing_is_said_where_the_gradient_drowns_in_noise() -> None:
    # Far fewer squares than even noise alone leaves in the first moment.
    assert noise_over_signal(1e-6, 1.0, beta1=0.9, beta2=0.95, updates=50) == 0.0
    assert noise_over_signal(1.0, 1.0, beta1=0.0, beta2=0.95, updates=50) == 0.0
