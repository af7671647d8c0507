"""Find the experts of any transformers family, and describe one expert as one chunk.

No family is named here: an experts module is one that ``use_experts_implementation`` decorated,
whose every parameter is stacked over experts (``[E, ...]``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from hecate.errors import ModelError


@dataclass(frozen=True)
class ExpertTensor:
    """One weight or bias of an expert: its name in the experts module and its place in a chunk."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class ChunkLayout:
    """How one expert's tensors lie, one behind another, in a chunk of ``numel`` elements."""

    tensors: tuple[ExpertTensor, ...]

    @property
    def numel(self) -> int:
        return sum(tensor.numel for tensor in self.tensors)

    def views(self, chunks_eC: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of ``[e, C]`` chunks by tensor name, each ``[e, *shape]``; no copy."""
        return {
            t.name: chunks_eC[:, t.offset : t.offset + t.numel].unflatten(1, t.shape)
            for t in self.tensors
        }


@dataclass(frozen=True)
class MoELayer:
    """One MoE layer: ``index`` counts MoE layers only; ``name`` is its experts module's path."""

    index: int
    name: str
    num_experts: int
    layout: ChunkLayout

    @property
    def expert_layout(self) -> ChunkLayout:
        """Where an expert's own tensors lie; ``layout`` is of what trains, most often the same."""
        return self.layout


def is_experts_module(module: nn.Module) -> bool:
    """Whether ``use_experts_implementation`` decorated the module's class."""
    return hasattr(type(module), "_apply_gate") and hasattr(module, "is_concatenated")


def find_moe_layers(model: nn.Module) -> tuple[MoELayer, ...]:
    """The MoE layers of ``model`` in module order; its parameters may be on the meta device.

    Raises ``ModelError`` for a model without any, or one whose experts are not stacked.
    """
    layers: list[MoELayer] = []
    for name, module in model.named_modules():
        if not is_experts_module(module):
            continue
        num_experts = int(module.num_experts)
        tensors: list[ExpertTensor] = []
        offset = 0
        for parameter_name, parameter in module.named_parameters():
            if parameter.shape[0] != num_experts:
                raise ModelError(
                    f"the experts of {name} are not stacked",
                    got=f"{parameter_name} of shape {tuple(parameter.shape)}",
                    expected=f"[{num_experts}, ...]: one slice for each expert",
                    fix="choose a family whose experts class holds stacked parameters",
                )
            tensor = ExpertTensor(parameter_name, tuple(parameter.shape[1:]), offset)
            tensors.append(tensor)
            offset += tensor.numel
        layers.append(MoELayer(len(layers), name, num_experts, ChunkLayout(tuple(tensors))))
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no MoE layer that Hecate can shard",
            got="no module decorated with transformers' use_experts_implementation",
            expected="a Mixture-of-Experts family such as qwen3_moe, mixtral, olmoe or gpt_oss",
            fix="set model.family or model.path to such a model",
        )
    return tuple(layers)
