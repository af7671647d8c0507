"""Experts that are frozen, with adapters that train (LoRA, 2106.09685).

Each projection is ``W x + s B (A x)``. Only ``A`` and ``B`` get gradients, so that the backward
pass is a third shorter than that of experts which train whole; ``A x`` is made anew in it, which
costs less than to keep it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from hecate.fssdp.experts.looped import accumulate, silu_gate_grad, spans, zero_unused
from hecate.fssdp.experts.math import ExpertMath, activation_grad
from hecate.fssdp.experts.protocol import HeldExperts, Saved


@dataclass(frozen=True)
class AdaptedExperts:
    """Some experts' adapters, which train, and the frozen tensors of each beside.

    ``weights`` and ``grads`` are those of ``adapters``; ``frozen[n]`` the tensors of its n-th
    expert by name.
    """

    adapters: HeldExperts
    frozen: tuple[Mapping[str, torch.Tensor], ...]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return self.adapters.weights

    @property
    def grads(self) -> dict[str, torch.Tensor]:
        return self.adapters.grads

    def begin_backward(self) -> bool:
        return self.adapters.begin_backward()


@dataclass(frozen=True)
class _Projection:
    """One projection of one expert: ``x -> x @ weight.T + scaling * x @ a.T @ b.T``.

    ``d_a``, ``d_b``: where gradients go, in a backward pass.
    """

    weight: torch.Tensor
    scaling: float
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    d_a: torch.Tensor | None = None
    d_b: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, out: torch.Tensor) -> None:
        torch.mm(x, self.weight.t(), out=out)
        if self.a is not None and self.b is not None:
            out.addmm_(x @ self.a.t(), self.b.t(), alpha=self.scaling)

    def backward(
        self, d_out: torch.Tensor, x: torch.Tensor, d_x: torch.Tensor, overwrite: bool
    ) -> None:
        """Into ``d_x`` the gradient of ``x``; those of the adapter are written or added."""
        torch.mm(d_out, self.weight, out=d_x)
        if self.a is None or self.b is None:
            return
        assert self.d_a is not None and self.d_b is not None
        low = (d_out @ self.b).mul_(self.scaling)
        accumulate(self.d_b, d_out.t(), (x @ self.a.t()).mul_(self.scaling), overwrite)
        accumulate(self.d_a, low.t(), x, overwrite)
        d_x.addmm_(low, self.a)


class AdaptedKernel:
    """One expert after another, on any device and in any dtype; ``held`` are ``AdaptedExperts``."""

    def __init__(self, scaling: float) -> None:
        self._scaling = scaling

    def forward(
        self,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        rows: Sequence[int],
        held: Sequence[HeldExperts],
        math: ExpertMath,
    ) -> tuple[torch.Tensor, Saved]:
        kept: list[tuple[torch.Tensor, ...]] = []
        y_RD = torch.empty_like(x_RD)
        for experts, n, a, b in _each(rows, held):
            up_proj, down_proj = self._projections(experts, n, math)
            up = x_RD.new_empty(b - a, up_proj.weight.shape[0])
            up_proj.forward(x_RD[a:b], up)
            bias = _biases(experts, n, math)
            if bias:
                up += bias[0]
            weight_R1 = weights_R[a:b, None]
            act = math.activate(up) * weight_R1
            down_proj.forward(act, y_RD[a:b])
            if bias:
                y_RD[a:b] += weight_R1 * bias[1]
            kept.append((up, act))
        if not kept:
            empty = x_RD.new_empty(0, 0)
            return y_RD, Saved(empty, empty, None)
        up_RF, act_RF = (torch.cat(tensors) for tensors in zip(*kept, strict=True))
        return y_RD, Saved(up_RF, act_RF, None)

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
        overwrites = {}
        for experts, counts, _ in _sets(rows, held):
            overwrites[id(experts)] = experts.begin_backward()
            if overwrites[id(experts)]:
                zero_unused(experts.grads, counts)
        for experts, n, a, b in _each(rows, held):
            up_proj, down_proj = self._projections(experts, n, math, gradients=True)
            d_y, up, weight_R = d_y_RD[a:b], saved.up_RF[a:b], weights_R[a:b]
            overwrite = overwrites[id(experts)]
            d_act = torch.empty_like(saved.act_RF[a:b])
            down_proj.backward(d_y, saved.act_RF[a:b], d_act, overwrite)
            if math.silu_gate:
                d_up = torch.empty_like(up)
                silu = torch.nn.functional.silu(up[:, : d_act.shape[1]])
                silu_gate_grad(up, silu, weight_R, d_act, out=(d_up, d_weights_R[a:b]))
            else:
                d_up, d_weights_R[a:b] = activation_grad(math, up, weight_R, d_act)
            up_proj.backward(d_up, x_RD[a:b], d_x_RD[a:b], overwrite)
            bias = _biases(experts, n, math)
            if bias:
                d_weights_R[a:b] += d_y @ bias[1]
        return d_x_RD, d_weights_R

    def _projections(
        self, experts: AdaptedExperts, n: int, math: ExpertMath, *, gradients: bool = False
    ) -> tuple[_Projection, _Projection]:
        made = []
        for name in (math.up, math.down):
            weight = experts.frozen[n][name]
            weight = weight.t() if math.transposed else weight
            halves = (f"{name}.lora_A", f"{name}.lora_B")
            if halves[0] not in experts.weights:
                made.append(_Projection(weight, self._scaling))
                continue
            a, b = (experts.weights[half][n] for half in halves)
            d_a, d_b = (experts.grads[half][n] if gradients else None for half in halves)
            made.append(_Projection(weight, self._scaling, a, b, d_a, d_b))
        return made[0], made[1]


def _sets(
    rows: Sequence[int], held: Sequence[HeldExperts]
) -> Iterator[tuple[AdaptedExperts, Sequence[int], int]]:
    """Each set of experts with the rows of its experts and where the first of them is."""
    first = start = 0
    for experts in held:
        assert isinstance(experts, AdaptedExperts)
        counts = rows[first : first + len(experts.frozen)]
        yield experts, counts, start
        start += sum(counts)
        first += len(counts)


def _each(
    rows: Sequence[int], held: Sequence[HeldExperts]
) -> Iterator[tuple[AdaptedExperts, int, int, int]]:
    """(experts, place among them, first row, one past the last) of each expert that has rows."""
    for experts, counts, start in _sets(rows, held):
        for n, a, b in spans(counts, start):
            yield experts, n, a, b


def _biases(experts: AdaptedExperts, n: int, math: ExpertMath) -> tuple[torch.Tensor, ...]:
    if not math.has_bias:
        return ()
    frozen = experts.frozen[n]
    return frozen[f"{math.up}_bias"], frozen[f"{math.down}_bias"]
