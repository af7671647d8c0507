"""Find the router of each MoE layer, its logits and its balancing bias, in any family."""

from __future__ import annotations

import inspect
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

    ``block`` is the MoE block; ``module`` gives the logits as output number ``output``
    (transformers records them for ``output_router_logits``); ``bias`` is the buffer of the
    aux-loss-free method (2408.15664), fp32 ``[E]``, where the family has one.
    """

    layer: MoELayer
    block: nn.Module
    module: nn.Module
    output: int
    has_logits: bool
    bias_owner: nn.Module | None

    @property
    def bias(self) -> torch.Tensor | None:
        """The balancing bias, or ``None``; looked up anew, since buffers move with the model."""
        return None if self.bias_owner is None else getattr(self.bias_owner, BIAS)

    @property
    def scores_by_sigmoid(self) -> bool:
        """Whether the family scores experts by sigmoid and not by softmax.

        transformers' configurations do not say; the code of the router, or of the block around
        it, does. Only families with a balancing bias score so.
        """
        return self.bias_owner is not None and any(
            "sigmoid" in inspect.getsource(type(part)) for part in (self.module, self.block)
        )

    def on_logits(self, record: Callable[..., None]) -> None:
        """Call ``record(layer index, logits [T, E], sigmoid=...)`` in every forward pass."""
        sigmoid = self.scores_by_sigmoid

        def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
            logits = outputs[self.output] if isinstance(outputs, tuple) else outputs
            record(self.layer.index, logits.reshape(-1, self.layer.num_experts), sigmoid=sigmoid)

        self.module.register_forward_hook(torch.compiler.disable(hook))


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
        routers.append(Router(layer, block, module, max(output, 0), output >= 0, bias_owner))
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
