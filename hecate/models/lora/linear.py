"""Adapters beside linear layers: those of attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from hecate.errors import ConfigError
from hecate.models.lora.config import LoraConfig

LORA_A, LORA_B = "lora_A", "lora_B"


class AdaptedLinear(nn.Linear):
    """A linear layer, frozen under its old names, and its adapter: ``lora_A``, ``lora_B``."""

    lora_A: nn.Linear
    lora_B: nn.Linear
    scaling: float
    dropout: float

    @classmethod
    def around(cls, linear: nn.Linear, config: LoraConfig) -> AdaptedLinear:
        """With the parameters of ``linear`` themselves; the adapter is on their device."""
        weight = linear.weight
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        made.weight, made.bias = linear.weight, linear.bias
        for name, (inputs, outputs) in (
            (LORA_A, (linear.in_features, config.rank)),
            (LORA_B, (config.rank, linear.out_features)),
        ):
            half = nn.Linear(inputs, outputs, False, device=weight.device, dtype=weight.dtype)
            made.add_module(name, half)
        made.scaling, made.dropout = config.scaling, config.dropout
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = F.dropout(x, self.dropout, self.training) if self.dropout else x
        adapted: torch.Tensor = self.lora_B(self.lora_A(seen))
        return super().forward(x) + adapted * self.scaling


def is_adapter(name: str) -> bool:
    """Whether the parameter of this name belongs to an adapter."""
    return f".{LORA_A}." in name or f".{LORA_B}." in name


def adapt_linears(model: PreTrainedModel, config: LoraConfig) -> tuple[str, ...]:
    """Put adapters beside every linear layer of attention, if it is a target; their paths.

    Raises ``ConfigError`` where the model has no such layer.
    """
    if "attention" not in config.targets:
        return ()
    names = _linears_of_attention(model)
    if not names:
        raise ConfigError(
            "lora.targets names attention, but the model has no linear layer in any",
            got=type(model).__name__,
            fix="leave attention out of lora.targets",
        )
    for name in names:
        parent, _, own = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        setattr(model.get_submodule(parent), own, AdaptedLinear.around(linear, config))
    return names


def _linears_of_attention(model: PreTrainedModel) -> tuple[str, ...]:
    attention = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Attention")
    )
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(attention)
    )
