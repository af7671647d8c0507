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
from typing import Protocol

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


@dataclass(frozen=True)
class Saved:
    """What the backward pass needs of the forward one: the first projection and its activation."""

    up_RF: torch.Tensor
    act_RF: torch.Tensor


class ExpertKernel(Protocol):
    """Run a shard's experts over rows sorted by expert; no autograd inside.

    ``forward``: ``[R, D]`` and the rows of each expert to ``[R, D]``. ``backward``: the gradient
    of that to the gradient of the input, adding weight gradients to the shard's buffer.
    """

    def forward(
        self, x_RD: torch.Tensor, rows: Sequence[int], shard: ExpertShard, math: ExpertMath
    ) -> tuple[torch.Tensor, Saved]: ...

    def backward(
        self,
        d_y_RD: torch.Tensor,
        x_RD: torch.Tensor,
        saved: Saved,
        rows: Sequence[int],
        shard: ExpertShard,
        math: ExpertMath,
    ) -> torch.Tensor: ...


class LoopedExperts:
    """One expert after another; any device and dtype, the reference for the other kernels."""

    def forward(
        self, x_RD: torch.Tensor, rows: Sequence[int], shard: ExpertShard, math: ExpertMath
    ) -> tuple[torch.Tensor, Saved]:
        up_eFD, down_eDF = _projections(shard.weights, math)
        bias = _biases(shard.weights, math)
        R, F2, Fd = x_RD.shape[0], up_eFD.shape[1], down_eDF.shape[2]
        up_RF, act_RF = x_RD.new_empty(R, F2), x_RD.new_empty(R, Fd)
        y_RD = x_RD.new_empty(R, down_eDF.shape[1])
        silu_RF = x_RD.new_empty(max(rows, default=0), Fd)
        for e, a, b in _spans(rows):
            up, act, y = up_RF[a:b], act_RF[a:b], y_RD[a:b]
            torch.mm(x_RD[a:b], up_eFD[e].t(), out=up)
            if bias:
                up += bias[0][e]
            if math.silu_gate:
                silu = torch.ops.aten.silu.out(up[:, :Fd], out=silu_RF[: b - a])
                torch.mul(silu, up[:, Fd:], out=act)
            else:
                act.copy_(math.activate(up))
            torch.mm(act, down_eDF[e].t(), out=y)
            if bias:
                y += bias[1][e]
        return y_RD, Saved(up_RF, act_RF)

    def backward(
        self,
        d_y_RD: torch.Tensor,
        x_RD: torch.Tensor,
        saved: Saved,
        rows: Sequence[int],
        shard: ExpertShard,
        math: ExpertMath,
    ) -> torch.Tensor:
        overwrite = shard.begin_backward()
        up_eFD, down_eDF = _projections(shard.weights, math)
        d_up_eFD, d_down_eDF = _projections(shard.grads, math)
        d_bias = _biases(shard.grads, math)
        d_x_RD = torch.empty_like(x_RD)
        Fd = saved.act_RF.shape[1]
        d_act_RF = x_RD.new_empty(max(rows, default=0), Fd)
        d_up_RF = x_RD.new_empty(max(rows, default=0), saved.up_RF.shape[1])
        if overwrite:
            for e, count in enumerate(rows):
                if count == 0:
                    for grad in shard.grads.values():
                        grad[e].zero_()
        for e, a, b in _spans(rows):
            x, d_y, up, act = x_RD[a:b], d_y_RD[a:b], saved.up_RF[a:b], saved.act_RF[a:b]
            _accumulate(d_down_eDF[e], d_y.t(), act, overwrite)
            d_act = torch.mm(d_y, down_eDF[e], out=d_act_RF[: b - a])
            if math.silu_gate:
                gate, d_up = up[:, :Fd], d_up_RF[: b - a]
                torch.ops.aten.silu.out(gate, out=d_up[:, Fd:]).mul_(d_act)
                d_act.mul_(up[:, Fd:])
                torch.ops.aten.silu_backward.grad_input(d_act, gate, grad_input=d_up[:, :Fd])
            else:
                d_up = _activation_grad(math, up, d_act)
            _accumulate(d_up_eFD[e], d_up.t(), x, overwrite)
            torch.mm(d_up, up_eFD[e], out=d_x_RD[a:b])
            if d_bias:
                for grad, d in zip(d_bias, (d_up, d_y), strict=True):
                    total = d.sum(0, dtype=grad.dtype)
                    grad[e].copy_(total) if overwrite else grad[e].add_(total)
        return d_x_RD


class GroupedExperts:
    """All experts in one launch per product, by ``F.grouped_mm``."""

    def forward(
        self, x_RD: torch.Tensor, rows: Sequence[int], shard: ExpertShard, math: ExpertMath
    ) -> tuple[torch.Tensor, Saved]:
        up_eFD, down_eDF = _projections(shard.weights, math)
        bias = _biases(shard.weights, math)
        ends = _ends(rows, x_RD.device)
        expert_R = _expert_of_row(rows, x_RD.device) if bias else None
        up_RF = F.grouped_mm(x_RD, up_eFD.transpose(1, 2), offs=ends)
        if bias:
            up_RF = up_RF + bias[0][expert_R]
        act_RF = math.activate(up_RF)
        y_RD = F.grouped_mm(act_RF, down_eDF.transpose(1, 2), offs=ends)
        if bias:
            y_RD = y_RD + bias[1][expert_R]
        return y_RD, Saved(up_RF, act_RF)

    def backward(
        self,
        d_y_RD: torch.Tensor,
        x_RD: torch.Tensor,
        saved: Saved,
        rows: Sequence[int],
        shard: ExpertShard,
        math: ExpertMath,
    ) -> torch.Tensor:
        overwrite = shard.begin_backward()
        up_eFD, down_eDF = _projections(shard.weights, math)
        d_up_eFD, d_down_eDF = _projections(shard.grads, math)
        ends = _ends(rows, x_RD.device)
        d_act_RF = F.grouped_mm(d_y_RD, down_eDF, offs=ends)
        d_up_RF = _activation_grad(math, saved.up_RF, d_act_RF)
        updates = [
            (d_down_eDF, F.grouped_mm(d_y_RD.t(), saved.act_RF, offs=ends)),
            (d_up_eFD, F.grouped_mm(d_up_RF.t(), x_RD, offs=ends)),
        ]
        for grad, d in zip(_biases(shard.grads, math), (d_up_RF, d_y_RD), strict=False):
            total = torch.zeros_like(grad)
            total.index_add_(0, _expert_of_row(rows, x_RD.device), d.to(grad.dtype))
            updates.append((grad, total))
        for grad, update in updates:
            grad.copy_(update) if overwrite else grad.add_(update)
        return F.grouped_mm(d_up_RF, up_eFD, offs=ends)


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


def _activation_grad(math: ExpertMath, up_RF: torch.Tensor, d_act_RF: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        leaf = up_RF.detach().requires_grad_()
        (grad,) = torch.autograd.grad(math.activate(leaf), leaf, d_act_RF)
    return grad
