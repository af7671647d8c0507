"""Muon: momentum made orthogonal, a matrix at a time (Jordan et al. 2024; 2502.16982).

Matrices and experts go by it, everything else by AdamW. Each matrix of each expert is one for
itself, whole on the rank that owns the expert; a dense matrix that is sharded in rows goes whole to
one rank, which gives every rank its rows of the result.

Note [Who orthogonalises which dense matrix]
    The sharded matrices of a step are taken in parameter order, as many at a time as there are
    ranks: matrix number r of these goes to rank r. Two exchanges for each such batch, in the same
    order on all ranks; each rank computes one matrix while the others compute theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from hecate.fssdp.norm import local_part
from hecate.mesh import naming
from hecate.train.moments import moments_of

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
RMS = 0.2  # of AdamW's updates, as measured in 2502.16982
MOMENTUM = "momentum_buffer"

Matrices = Callable[[torch.Tensor], list[torch.Tensor]]
"""The matrices in a table of experts ``[e, C]``, each ``[e, A, B]``; views."""


def orthogonalised(matrices: torch.Tensor, *, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """``U V^T`` of each of ``[..., A, B]``, nearly: singular values become 0.7 to 1.2.

    Newton-Schulz iterations in ``dtype``, on the side with fewer rows.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = x.mT if tall else x
    return result.to(matrices.dtype)


def update_scale(rows: int, columns: int) -> float:
    """What gives an orthogonal matrix the RMS of AdamW's updates (2502.16982, equation 4)."""
    return float(RMS * max(rows, columns) ** 0.5)


class Muon(torch.optim.Optimizer):
    """Steps the groups of roles ``matrix`` and ``expert`` by Muon, and the others by AdamW.

    Args:
        groups: each with ``role``, ``weight_decay`` and ``moments``.
        matrices: what lies in each expert parameter, by its ``id``.
        dtype: of the Newton-Schulz iterations; ``None`` for that of the masters.
        defaults: AdamW's settings.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        matrices: Mapping[int, Matrices],
        momentum: float,
        newton_schulz_steps: int,
        dtype: torch.dtype | None,
        defaults: dict[str, Any],
    ) -> None:
        super().__init__(list(groups), dict(defaults))
        self._matrices, self._momentum = matrices, momentum
        self._steps, self._dtype = newton_schulz_steps, dtype
        others = [group for group in self.param_groups if not by_muon(group["role"])]
        self._adamw = torch.optim.AdamW(others, **defaults) if others else None
        if self._adamw is not None:  # one state, and one learning rate for each group
            self._adamw.param_groups, self._adamw.state = others, self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Collective where matrices are sharded. Takes no closure."""
        assert closure is None, "gradients are there already"
        if self._adamw is not None:
            self._adamw.step()
        for group in self.param_groups:
            if group["role"] == "expert":
                self._step_experts(group)
            elif by_muon(group["role"]):
                self._step_dense(group)

    def _step_experts(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            moments_of(self, parameter, (MOMENTUM,))  # what may come to own experts has a table
            if parameter.grad is None or not parameter.numel():
                continue
            update_eC = self._averaged(parameter, parameter.grad)
            for matrices in self._matrices[id(parameter)](update_eC):
                scale = update_scale(*matrices.shape[-2:])
                matrices.copy_(self._orthogonal(matrices).mul_(scale))
            self._apply(group, parameter, update_eC)

    def _step_dense(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        updates = [self._averaged(p, local_part(p.grad)) for p in parameters]
        sharded = [number for number, p in enumerate(parameters) if isinstance(p, DTensor)]
        whole = {
            number: self._orthogonal(updates[number])
            for number in range(len(parameters))
            if number not in set(sharded)
        }
        rows = self._exchanged(
            [parameters[number] for number in sharded], [updates[number] for number in sharded]
        )
        results = whole | dict(zip(sharded, rows, strict=True))
        for number, parameter in enumerate(parameters):
            scale = update_scale(*parameter.shape)
            self._apply(group, local_part(parameter), results[number].mul_(scale))

    def _averaged(self, parameter: nn.Parameter, grad: torch.Tensor) -> torch.Tensor:
        """Take ``grad`` into the momentum, and give Nesterov's look ahead, both local."""
        state = moments_of(self, parameter, (MOMENTUM,))
        momentum = local_part(state[MOMENTUM])
        momentum.lerp_(grad, 1 - self._momentum)
        return grad.lerp(momentum, self._momentum)

    def _orthogonal(self, matrices: torch.Tensor) -> torch.Tensor:
        return orthogonalised(matrices, steps=self._steps, dtype=self._dtype or matrices.dtype)

    def _apply(self, group: dict[str, Any], parameter: torch.Tensor, update: torch.Tensor) -> None:
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"])

    def _exchanged(
        self, parameters: Sequence[DTensor], updates: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """This rank's rows of each orthogonalised update; Note [Who orthogonalises which ...]."""
        if not parameters:
            return []
        group = parameters[0].device_mesh.get_group()
        world_size, rank = group.size(), group.rank()
        results: list[torch.Tensor] = []
        for first in range(0, len(parameters), world_size):
            batch = parameters[first : first + world_size]
            own_rows = updates[first : first + world_size]
            sent = [rows.numel() for rows in own_rows] + [0] * (world_size - len(batch))
            received = [0] * world_size
            if rank < len(batch):
                received = _elements_by_rank(batch[rank], world_size)
            rows = torch.cat([rows.flatten() for rows in own_rows])
            whole, back = rows.new_empty(sum(received)), torch.empty_like(rows)
            with naming("the exchange of matrices to orthogonalise", rank):
                dist.all_to_all_single(whole, rows, received, sent, group=group)
            if rank < len(batch):
                whole = self._orthogonal(whole.view(batch[rank].shape)).flatten()
            with naming("the exchange of orthogonalised matrices", rank):
                dist.all_to_all_single(back, whole, sent, received, group=group)
            parts = back.split(sent[: len(batch)])
            results += [p.view_as(rows) for p, rows in zip(parts, own_rows, strict=True)]
        return results


def by_muon(role: str) -> bool:
    """Whether parameters of this role are matrices that Muon orthogonalises."""
    return role in ("matrix", "expert")


def _elements_by_rank(matrix: DTensor, world_size: int) -> list[int]:
    """How many elements of a matrix that is sharded in rows lie on each rank."""
    assert matrix.placements == (Shard(0),), f"sharded as {matrix.placements}"
    chunks = torch.empty(matrix.shape, device="meta").chunk(world_size)
    return [chunk.numel() for chunk in chunks] + [0] * (world_size - len(chunks))
