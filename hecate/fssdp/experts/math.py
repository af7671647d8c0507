"""What one family's expert computes, read off its module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.moe import _default_apply_gate

from hecate.errors import ModelError


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


def projections(
    tensors: dict[str, torch.Tensor], math: ExpertMath
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both weights as ``[e, out, in]`` views, however the family stores them."""
    up, down = tensors[math.up], tensors[math.down]
    return (up.transpose(1, 2), down.transpose(1, 2)) if math.transposed else (up, down)


def biases(tensors: dict[str, torch.Tensor], math: ExpertMath) -> tuple[torch.Tensor, ...]:
    if not math.has_bias:
        return ()
    return tensors[f"{math.up}_bias"], tensors[f"{math.down}_bias"]


def activation_grad(
    math: ExpertMath, up_RF: torch.Tensor, weight_R: torch.Tensor, d_act_RF: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for any activation, by autograd."""
    with torch.enable_grad():
        leaf, weight = up_RF.detach().requires_grad_(), weight_R.detach().requires_grad_()
        weighted = math.activate(leaf) * weight[:, None]
        d_up_RF, d_weight_R = torch.autograd.grad(weighted, (leaf, weight), d_act_RF)
    return d_up_RF, d_weight_R
