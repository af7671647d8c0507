"""An expert in two parts: what is frozen, and the adapters that train.

Every routed expert has adapters of its own, beside both projections. They make up its chunk: what
FSSDP's placements are about, what optimizers see, what a checkpoint saves. The frozen part has a
layout of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from hecate.models.families import ChunkLayout, ExpertTensor, MoELayer
from hecate.models.lora.config import LoraConfig
from hecate.models.lora.linear import LORA_A, LORA_B


@dataclass(frozen=True)
class AdaptedLayer(MoELayer):
    """A MoE layer whose ``layout`` is that of each expert's adapters.

    ``frozen``: the layout of the expert itself, which does not train. ``projections``: the frozen
    tensors that have an adapter, in the module's order; the adapter of ``up`` is ``up.lora_A``
    and ``up.lora_B``. ``scaling``: what ``B @ A`` is multiplied with.
    """

    frozen: ChunkLayout
    projections: tuple[str, ...]
    scaling: float

    @property
    def expert_layout(self) -> ChunkLayout:
        return self.frozen


def adapted_layers(
    model: nn.Module, layers: tuple[MoELayer, ...], config: LoraConfig
) -> tuple[AdaptedLayer, ...]:
    """``layers`` with adapters beside both projections of each expert, or without any."""
    wanted = "experts" in config.targets
    return tuple(
        _adapted(model.get_submodule(layer.name), layer, config, wanted) for layer in layers
    )


def _adapted(module: nn.Module, layer: MoELayer, config: LoraConfig, wanted: bool) -> AdaptedLayer:
    tensors: list[ExpertTensor] = []
    projections = []
    for tensor in layer.layout.tensors if wanted else ():
        if len(tensor.shape) != 2:
            continue
        first, second = tensor.shape
        inputs, outputs = (first, second) if module.is_transposed else (second, first)
        projections.append(tensor.name)
        for half, shape in ((LORA_A, (config.rank, inputs)), (LORA_B, (outputs, config.rank))):
            offset = sum(prod(t.shape) for t in tensors)
            tensors.append(ExpertTensor(f"{tensor.name}.{half}", shape, offset))
    return AdaptedLayer(
        layer.index,
        layer.name,
        layer.num_experts,
        ChunkLayout(tuple(tensors)),
        frozen=layer.layout,
        projections=tuple(projections),
        scaling=config.scaling,
    )
