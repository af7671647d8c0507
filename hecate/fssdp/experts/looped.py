"""Experts one after another, which on a CPU keeps their rows in cache between projections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from hecate.fssdp.experts.math import ExpertMath, activation_grad, biases, projections
from hecate.fssdp.experts.protocol import HeldExperts, Saved, parts


class LoopedExperts:
    """One expert after another; any device and dtype, the reference for the other kernels."""

    def forward(
        self,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        rows: Sequence[int],
        held: Sequence[HeldExperts],
        math: ExpertMath,
    ) -> tuple[torch.Tensor, Saved]:
        F2, Fd = widths(held, math)
        R, D = x_RD.shape
        up_RF, act_RF = x_RD.new_empty(R, F2), x_RD.new_empty(R, Fd)
        silu_RF = x_RD.new_empty(R, Fd) if math.silu_gate else None
        y_RD = x_RD.new_empty(R, D)
        for experts, counts, start in parts(rows, held):
            up_eFD, down_eDF = projections(experts.weights, math)
            bias = biases(experts.weights, math)
            for e, a, b in spans(counts, start):
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
        held: Sequence[HeldExperts],
        math: ExpertMath,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        d_x_RD, d_weights_R = torch.empty_like(x_RD), torch.empty_like(weights_R)
        most, Fd = max(rows, default=0), saved.act_RF.shape[1]
        d_act_RF, d_up_RF = x_RD.new_empty(most, Fd), x_RD.new_empty(most, saved.up_RF.shape[1])
        for experts, counts, start in parts(rows, held):
            overwrite = experts.begin_backward()
            up_eFD, down_eDF = projections(experts.weights, math)
            d_up_eFD, d_down_eDF = projections(experts.grads, math)
            bias, d_bias = biases(experts.weights, math), biases(experts.grads, math)
            if overwrite:
                zero_unused(experts.grads, counts)
            for e, a, b in spans(counts, start):
                x, d_y, up, weight_R = x_RD[a:b], d_y_RD[a:b], saved.up_RF[a:b], weights_R[a:b]
                accumulate(d_down_eDF[e], d_y.t(), saved.act_RF[a:b], overwrite)
                d_act = torch.mm(d_y, down_eDF[e], out=d_act_RF[: b - a])
                if saved.silu_RF is not None:
                    d_up = d_up_RF[: b - a]
                    silu_gate_grad(
                        up, saved.silu_RF[a:b], weight_R, d_act, out=(d_up, d_weights_R[a:b])
                    )
                else:
                    d_up, d_weights_R[a:b] = activation_grad(math, up, weight_R, d_act)
                accumulate(d_up_eFD[e], d_up.t(), x, overwrite)
                torch.mm(d_up, up_eFD[e], out=d_x_RD[a:b])
                if d_bias:
                    d_weights_R[a:b] += d_y @ bias[1][e]
                    for grad, d in zip(d_bias, (d_up, d_y * weight_R[:, None]), strict=True):
                        total = d.sum(0, dtype=grad.dtype)
                        grad[e].copy_(total) if overwrite else grad[e].add_(total)
        return d_x_RD, d_weights_R


def widths(held: Sequence[HeldExperts], math: ExpertMath) -> tuple[int, int]:
    """Outputs of the first projection and inputs of the second."""
    up_eFD, down_eDF = projections(held[0].weights, math)
    return up_eFD.shape[1], down_eDF.shape[2]


def zero_unused(grads: dict[str, torch.Tensor], rows: Sequence[int]) -> None:
    """Zero the gradients of experts that have no row."""
    for e, count in enumerate(rows):
        if count == 0:
            for grad in grads.values():
                grad[e].zero_()


def spans(rows: Sequence[int], start: int) -> Iterator[tuple[int, int, int]]:
    """(expert, first row, one past the last row) of each expert that has rows."""
    for e, count in enumerate(rows):
        if count:
            yield e, start, start + count
        start += count


def accumulate(grad: torch.Tensor, a: torch.Tensor, b: torch.Tensor, overwrite: bool) -> None:
    """``grad = a @ b`` or ``grad += a @ b``, in the gradient's dtype."""
    if grad.dtype != a.dtype:
        product = torch.mm(a, b)
        grad.copy_(product) if overwrite else grad.add_(product)
    elif overwrite:
        torch.mm(a, b, out=grad)
    else:
        grad.addmm_(a, b)


def silu_gate_grad(
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
