"""The experts of one rank: grouped GEMMs forward and backward, gradients written in place.

Rows come sorted by expert. ``LoopedExperts`` runs one expert at a time, which on a CPU keeps its
rows in cache between the two projections; ``GroupedExperts`` launches ``F.grouped_mm`` for all of
them at once, which is what a GPU wants. Both write weight gradients straight into the shard's
buffer, where autograd would allocate, zero and add one tensor per use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.moe import _default_apply_gate

from hecate.errors import ModelError
from hecate.fssdp.shards import ExpertShard
from hecate.models.families import ChunkLayout


@dataclass(frozen=True)
class ExpertMath:
    """What one family's expert computes between and around its two projections.

    ``up``, ``down``: tensor names. ``transposed``: weights are ``[in, out]``, not ``[out, in]``.
    ``silu_gate``: ``silu(gate) * up`` over concatenated halves, which has a fused path here; any
    other activation runs the family's own code.
    """

    module: nn.Module
    up: str
    down: str
    transposed: bool
    has_bias: bool
    silu_gate: bool

    @classmethod
    def of(cls, module: nn.Module, name: str) -> ExpertMath:
        """Read it off a module that ``use_experts_implementation`` decorated."""
        if module.has_post_expert_norm:
            raise ModelError(
                f"the experts of {name} are normalised after their last projection",
                got=type(module).__name__,
                expected="two projections with an activation between them",
                fix="choose another family",
            )
        up = "gate_up_proj" if module.has_gate else "up_proj"
        plain = type(module)._apply_gate is _default_apply_gate  # type: ignore[attr-defined]
        activation = getattr(module, "act_fn", None)
        return cls(
            module=module,
            up=up,
            down="down_proj",
            transposed=bool(module.is_transposed),
            has_bias=bool(module.has_bias),
            silu_gate=bool(module.has_gate) and plain and _is_silu(activation),
        )

    def activate(self, up_RF: torch.Tensor) -> torch.Tensor:
        """The family's own activation, ``[R, 2F]`` or ``[R, F]`` to ``[R, F]``; differentiable."""
        gate = self.module._apply_gate if self.module.has_gate else self.module.act_fn
        result: torch.Tensor = gate(up_RF)  # type: ignore[operator]
        return result


def _is_silu(activation: object) -> bool:
    if isinstance(activation, nn.SiLU):
        return True
    probe = torch.linspace(-4, 4, 9)
    return callable(activation) and torch.equal(activation(probe), F.silu(probe))


class Saved(NamedTuple):
    """What the backward pass needs of the forward one.

    ``up_RF``: the first projection. ``act_RF``: its activation times the router's weight, which is
    what the second projection took. ``silu_RF``: silu of the gate, where the kernel keeps it.
    """

    up_RF: torch.Tensor
    act_RF: torch.Tensor
    silu_RF: torch.Tensor | None


class ExpertKernel(Protocol):
    """Run a shard's experts over rows sorted by expert; no autograd inside.

    ``forward``: rows ``[R, D]``, the router's weight of each ``[R]`` and the rows of each expert
    to ``[R, D]``, each row its expert's output times its weight. The weight is applied between the
    projections, where it costs no pass over the results and nothing of them is kept for its
    gradient. ``backward``: the gradient of that to those of rows and weights, adding weight
    gradients to the shard's buffer.
    """

    def forward(
        self,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        rows: Sequence[int],
        shard: ExpertShard,
        math: ExpertMath,
    ) -> tuple[torch.Tensor, Saved]: ...

    def backward(
        self,
        d_y_RD: torch.Tensor,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        saved: Saved,
        rows: Sequence[int],
        shard: ExpertShard,
        math: ExpertMath,
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


class LoopedExperts:
    """One expert after another; any device and dtype, the reference for the other kernels."""

    def forward(
        self,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        rows: Sequence[int],
        shard: ExpertShard,
        math: ExpertMath,
    ) -> tuple[torch.Tensor, Saved]:
        up_eFD, down_eDF = _projections(shard.weights, math)
        bias = _biases(shard.weights, math)
        R, F2, Fd = x_RD.shape[0], up_eFD.shape[1], down_eDF.shape[2]
        up_RF, act_RF = x_RD.new_empty(R, F2), x_RD.new_empty(R, Fd)
        silu_RF = x_RD.new_empty(R, Fd) if math.silu_gate else None
        y_RD = x_RD.new_empty(R, down_eDF.shape[1])
        for e, a, b in _spans(rows):
            up, act, y, weight_R1 = up_RF[a:b], act_RF[a:b], y_RD[a:b], weights_R[a:b, None]
            torch.mm(x_RD[a:b], up_eFD[e].t(), out=up)
            if bias:
                up += bias[0][e]
            if silu_RF is not None:
                silu = torch.ops.aten.silu.out(up[:, :Fd], out=silu_RF[a:b])
                torch.mul(silu, up[:, Fd:], out=act).mul_(weight_R1)
            else:
                torch.mul(math.activate(up), weight_R1, out=act)
            torch.mm(act, down_eDF[e].t(), out=y)
            if bias:
                y += weight_R1 * bias[1][e]
        return y_RD, Saved(up_RF, act_RF, silu_RF)

    def backward(
        self,
        d_y_RD: torch.Tensor,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        saved: Saved,
        rows: Sequence[int],
        shard: ExpertShard,
        math: ExpertMath,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        overwrite = shard.begin_backward()
        up_eFD, down_eDF = _projections(shard.weights, math)
        d_up_eFD, d_down_eDF = _projections(shard.grads, math)
        bias, d_bias = _biases(shard.weights, math), _biases(shard.grads, math)
        d_x_RD, d_weights_R = torch.empty_like(x_RD), torch.empty_like(weights_R)
        most, Fd = max(rows, default=0), saved.act_RF.shape[1]
        d_act_RF, d_up_RF = x_RD.new_empty(most, Fd), x_RD.new_empty(most, saved.up_RF.shape[1])
        if overwrite:
            for e, count in enumerate(rows):
                if count == 0:
                    for grad in shard.grads.values():
                        grad[e].zero_()
        for e, a, b in _spans(rows):
            x, d_y, up, weight_R = x_RD[a:b], d_y_RD[a:b], saved.up_RF[a:b], weights_R[a:b]
            _accumulate(d_down_eDF[e], d_y.t(), saved.act_RF[a:b], overwrite)
            d_act = torch.mm(d_y, down_eDF[e], out=d_act_RF[: b - a])
            if saved.silu_RF is not None:
                d_up = d_up_RF[: b - a]
                _silu_gate_grad(
                    up, saved.silu_RF[a:b], weight_R, d_act, out=(d_up, d_weights_R[a:b])
                )
            else:
                d_up, d_weights_R[a:b] = _activation_grad(math, up, weight_R, d_act)
            _accumulate(d_up_eFD[e], d_up.t(), x, overwrite)
            torch.mm(d_up, up_eFD[e], out=d_x_RD[a:b])
            if d_bias:
                d_weights_R[a:b] += d_y @ bias[1][e]
                for grad, d in zip(d_bias, (d_up, d_y * weight_R[:, None]), strict=True):
                    total = d.sum(0, dtype=grad.dtype)
                    grad[e].copy_(total) if overwrite else grad[e].add_(total)
        return d_x_RD, d_weights_R


class GroupedExperts:
    """All experts in one launch per product, by ``F.grouped_mm``."""

    def forward(
        self,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        rows: Sequence[int],
        shard: ExpertShard,
        math: ExpertMath,
    ) -> tuple[torch.Tensor, Saved]:
        up_eFD, down_eDF = _projections(shard.weights, math)
        bias = _biases(shard.weights, math)
        ends = _ends(rows, x_RD.device)
        expert_R = _expert_of_row(rows, x_RD.device) if bias else None
        up_RF = F.grouped_mm(x_RD, up_eFD.transpose(1, 2), offs=ends)
        if bias:
            up_RF = up_RF + bias[0][expert_R]
        act_RF = math.activate(up_RF) * weights_R[:, None]
        y_RD = F.grouped_mm(act_RF, down_eDF.transpose(1, 2), offs=ends)
        if bias:
            y_RD = y_RD + weights_R[:, None] * bias[1][expert_R]
        return y_RD, Saved(up_RF, act_RF, None)

    def backward(
        self,
        d_y_RD: torch.Tensor,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        saved: Saved,
        rows: Sequence[int],
        shard: ExpertShard,
        math: ExpertMath,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        overwrite = shard.begin_backward()
        up_eFD, down_eDF = _projections(shard.weights, math)
        d_up_eFD, d_down_eDF = _projections(shard.grads, math)
        ends = _ends(rows, x_RD.device)
        d_act_RF = F.grouped_mm(d_y_RD, down_eDF, offs=ends)
        d_up_RF, d_weights_R = _activation_grad(math, saved.up_RF, weights_R, d_act_RF)
        updates = [
            (d_down_eDF, F.grouped_mm(d_y_RD.t(), saved.act_RF, offs=ends)),
            (d_up_eFD, F.grouped_mm(d_up_RF.t(), x_RD, offs=ends)),
        ]
        if math.has_bias:
            expert_R = _expert_of_row(rows, x_RD.device)
            d_weights_R = d_weights_R + (d_y_RD * _biases(shard.weights, math)[1][expert_R]).sum(-1)
            of_rows = (d_up_RF, d_y_RD * weights_R[:, None])
            for grad, d in zip(_biases(shard.grads, math), of_rows, strict=True):
                total = torch.zeros_like(grad)
                total.index_add_(0, expert_R, d.to(grad.dtype))
                updates.append((grad, total))
        for grad, update in updates:
            grad.copy_(update) if overwrite else grad.add_(update)
        return F.grouped_mm(d_up_RF, up_eFD, offs=ends), d_weights_R


KERNELS: dict[str, type[LoopedExperts] | type[GroupedExperts]] = {
    "looped": LoopedExperts,
    "grouped": GroupedExperts,
}


def kernel_for(device: torch.device, dtype: torch.dtype, layout: ChunkLayout) -> ExpertKernel:
    """The kernel that is faster on ``device``, of those that can run these experts there."""
    grouped = device.type == "cuda" and fits_grouped(dtype, layout)
    return KERNELS["grouped" if grouped else "looped"]()


def fits_grouped(dtype: torch.dtype, layout: ChunkLayout) -> bool:
    """Whether ``F.grouped_mm`` takes these experts: not fp64, strides in multiples of 16 bytes."""
    strides = [layout.numel]
    for tensor in layout.tensors:
        strides += [tensor.offset, *(tensor.shape if len(tensor.shape) == 2 else ())]
    return dtype != torch.float64 and all(n * dtype.itemsize % 16 == 0 for n in strides)


def _projections(
    tensors: dict[str, torch.Tensor], math: ExpertMath
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both weights as ``[e, out, in]`` views, however the family stores them."""
    up, down = tensors[math.up], tensors[math.down]
    return (up.transpose(1, 2), down.transpose(1, 2)) if math.transposed else (up, down)


def _biases(tensors: dict[str, torch.Tensor], math: ExpertMath) -> tuple[torch.Tensor, ...]:
    if not math.has_bias:
        return ()
    return tensors[f"{math.up}_bias"], tensors[f"{math.down}_bias"]


def _spans(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(expert slot, first row, one past the last row) of each expert that has rows."""
    start = 0
    for e, count in enumerate(rows):
        if count:
            yield e, start, start + count
        start += count


def _ends(rows: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(list(accumulate(rows)), dtype=torch.int32, device=device)


def _expert_of_row(rows: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.repeat_interleave(torch.tensor(list(rows), device=device))


def _accumulate(grad: torch.Tensor, a: torch.Tensor, b: torch.Tensor, overwrite: bool) -> None:
    """``grad = a @ b`` or ``grad += a @ b``, in the gradient's dtype."""
    if grad.dtype != a.dtype:
        product = torch.mm(a, b)
        grad.copy_(product) if overwrite else grad.add_(product)
    elif overwrite:
        torch.mm(a, b, out=grad)
    else:
        grad.addmm_(a, b)


def _silu_gate_grad(
    up_RF: torch.Tensor,
    silu_RF: torch.Tensor,
    weight_R: torch.Tensor,
    d_act_RF: torch.Tensor,
    *,
    out: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Into ``out``, the gradients of ``weight * silu(gate) * up`` to ``gate | up`` and to weight.

    Uses ``d_act_RF`` up.
    """
    d_up_RF, d_weight_R = out
    Fd = silu_RF.shape[1]
    gate, up = up_RF[:, :Fd], up_RF[:, Fd:]
    d_gate, d_linear = d_up_RF[:, :Fd], d_up_RF[:, Fd:]
    torch.sum(torch.mul(silu_RF, up, out=d_gate).mul_(d_act_RF), -1, out=d_weight_R)
    torch.mul(silu_RF, d_act_RF.mul_(weight_R[:, None]), out=d_linear)
    torch.ops.aten.silu_backward.grad_input(d_act_RF.mul_(up), gate, grad_input=d_gate)


def _activation_grad(
    math: ExpertMath, up_RF: torch.Tensor, weight_R: torch.Tensor, d_act_RF: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for any activation, by autograd."""
    with torch.enable_grad():
        leaf, weight = up_RF.detach().requires_grad_(), weight_R.detach().requires_grad_()
        weighted = math.activate(leaf) * weight[:, None]
        d_up_RF, d_weight_R = torch.autograd.grad(weighted, (leaf, weight), d_act_RF)
    return d_up_RF, d_weight_R
