"""What of a model an adapter may change: its linear layers and its routed experts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from hecate.models.families import is_experts_module

NO_LAYER = -1

# Linear layers that see other rows than the step's tokens.
_OTHER_ROWS = ("lm_head", "embed_out")
_OF_EXPERTS = ("gate_up_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Target:
    """One projection ``inputs -> outputs``, of a linear layer or of each of ``experts`` experts.

    ``module``: the path of the linear layer or of the experts module. ``parameter``: the experts'
    weight, "" for a linear layer. ``layer``: which of the model's layers it is in.
    """

    module: str
    parameter: str
    inputs: int
    outputs: int
    experts: int = 1
    layer: int = NO_LAYER

    @property
    def name(self) -> str:
        """As PEFT's configuration names it."""
        return f"{self.module}.{self.parameter}" if self.parameter else self.module


@dataclass(frozen=True)
class Targets:
    """All of a model's, by name, in the model's order."""

    by_name: Mapping[str, Target]

    @property
    def num_layers(self) -> int:
        return 1 + max((target.layer for target in self.by_name.values()), default=NO_LAYER)

    def of_module(self, module: str) -> tuple[Target, ...]:
        return tuple(target for target in self.by_name.values() if target.module == module)


def find_targets(model: nn.Module) -> Targets:
    """Every projection of ``model`` that an adapter may change."""
    found: list[Target] = []
    for name, module in model.named_modules():
        layer = _layer_of(name)
        if is_experts_module(module):
            found += _of_experts(name, module, layer)
        elif isinstance(module, nn.Linear) and name.split(".")[-1] not in _OTHER_ROWS:
            found.append(Target(name, "", module.in_features, module.out_features, layer=layer))
    return Targets({target.name: target for target in found})


def _of_experts(name: str, module: nn.Module, layer: int) -> Sequence[Target]:
    experts = int(module.num_experts)  # type: ignore[arg-type]
    found = []
    for parameter, weight in module.named_parameters(recurse=False):
        if weight.ndim != 3 or parameter not in _OF_EXPERTS:
            continue
        first, second = weight.shape[1:]
        inputs, outputs = (first, second) if module.is_transposed else (second, first)
        found.append(Target(name, parameter, inputs, outputs, experts, layer))
    return found


def _layer_of(name: str) -> int:
    found = re.search(r"\.(\d+)\.", name)
    return int(found.group(1)) if found else NO_LAYER
