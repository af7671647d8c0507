"""What a kernel gets and gives, and the experts that it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch

from hecate.fssdp.experts.math import ExpertMath


class Saved(NamedTuple):
    """What the backward pass needs of the forward one.

    ``up_RF``: the first projection. ``act_RF``: its activation times the router's weight, which is
    what the second projection took. ``silu_RF``: silu of the gate, where the kernel keeps it.
    """

    up_RF: torch.Tensor
    act_RF: torch.Tensor
    silu_RF: torch.Tensor | None


class HeldExperts(Protocol):
    """Some experts that this rank computes with: its own, or replicas of others'.

    ``weights`` and ``grads``: ``[n, *shape]`` views by tensor name, experts in a fixed order.
    ``begin_backward``: whether the backward pass that begins overwrites ``grads`` (``True``) or
    adds to them.
    """

    @property
    def weights(self) -> dict[str, torch.Tensor]: ...

    @property
    def grads(self) -> dict[str, torch.Tensor]: ...

    def begin_backward(self) -> bool: ...


class ExpertKernel(Protocol):
    """Run the experts that a rank holds over rows sorted by expert; no autograd inside.

    ``held`` lists the experts in the order of ``rows``, which says how many rows each has.
    ``forward``: rows ``[R, D]`` and the router's weight of each ``[R]`` to ``[R, D]``, each row
    its expert's output times its weight. The weight is applied between the projections, where it
    costs no pass over the results and nothing of them is kept for its gradient. ``backward``: the
    gradient of that to those of rows and weights; weight gradients go to ``held``'s buffers.
    """

    def forward(
        self,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        rows: Sequence[int],
        held: Sequence[HeldExperts],
        math: ExpertMath,
    ) -> tuple[torch.Tensor, Saved]: ...

    def backward(
        self,
        d_y_RD: torch.Tensor,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        saved: Saved,
        rows: Sequence[int],
        held: Sequence[HeldExperts],
        math: ExpertMath,
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


def parts(
    rows: Sequence[int], held: Sequence[HeldExperts]
) -> Iterator[tuple[HeldExperts, Sequence[int], int]]:
    """Each set of experts with the rows of its experts and where the first of them is."""
    first = start = 0
    for experts in held:
        count = next(iter(experts.weights.values())).shape[0]
        yield experts, rows[first : first + count], start
        start += sum(rows[first : first + count])
        first += count
