"""Find the router of each MoE layer, its logits and its balancing bias, in any family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hecate.models.families import MoELayer

BIAS = "e_score_correction_bias"


@dataclass(frozen=True)
class Router:
    """The router of one layer.

    ``module`` gives its logits as output number ``output`` (transformers records them for
    ``output_router_logits``); ``bias`` is the buffer of the aux-loss-free method (2408.15664),
    fp32 ``[E]``, where the family has one.
    """

    layer: MoELayer
    module: nn.Module
    output: int
    has_logits: bool
    bias_owner: nn.Module | None

    @property
    def bias(self) -> torch.Tensor | None:
        """The balancing bias, or ``None``; looked up anew, since buffers move with the model."""
        return None if self.bias_owner is None else getattr(self.bias_owner, BIAS)

    def on_logits(self, record: Callable[..., None]) -> None:
        """Call ``record(layer index, logits [T, E], sigmoid=...)`` in every forward pass."""
        sigmoid = self.bias_owner is not None

        def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
            logits = outputs[self.output] if isinstance(outputs, tuple) else outputs
            record(self.layer.index, logits.reshape(-1, self.layer.num_experts), sigmoid=sigmoid)

        self.module.register_forward_hook(hook)


def find_routers(model: nn.Module, layers: tuple[MoELayer, ...]) -> tuple[Router, ...]:
    """The router of each layer: the recorded router class within the experts' parent module."""
    recorders = _recorders(model)
    routers = []
    for layer in layers:
        block = model.get_submodule(layer.name.rpartition(".")[0])
        module, output = block, -1
        for candidate in block.modules():
            for target, index in recorders:
                if isinstance(candidate, target):
                    module, output = candidate, index
        bias_owner = next(
            (m for m in block.modules() if isinstance(getattr(m, BIAS, None), torch.Tensor)), None
        )
        routers.append(Router(layer, module, max(output, 0), output >= 0, bias_owner))
    return tuple(routers)


def _recorders(model: nn.Module) -> list[tuple[type[nn.Module], int]]:
    """(router class, index of its logits) as each sub-model declares them to transformers."""
    found = []
    for module in model.modules():
        declared = getattr(module, "_can_record_outputs", None) or {}
        for recorder in _as_list(declared.get("router_logits")):
            target = getattr(recorder, "target_class", recorder)
            if isinstance(target, type) and issubclass(target, nn.Module):
                found.append((target, int(getattr(recorder, "index", 0) or 0)))
    return found


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
