"""Which kernel runs where."""

from __future__ import annotations

import torch

from hecate.fssdp.experts.adapted import AdaptedKernel
from hecate.fssdp.experts.grouped import GroupedExperts
from hecate.fssdp.experts.looped import LoopedExperts
from hecate.fssdp.experts.protocol import ExpertKernel
from hecate.models.families import ChunkLayout, MoELayer
from hecate.models.lora import AdaptedLayer

KERNELS: dict[str, type[LoopedExperts] | type[GroupedExperts]] = {
    "looped": LoopedExperts,
    "grouped": GroupedExperts,
}


def kernel_for(device: torch.device, dtype: torch.dtype, layout: ChunkLayout) -> ExpertKernel:
    """The kernel that is faster on ``device``, of those that can run these experts there."""
    grouped = device.type == "cuda" and fits_grouped(dtype, layout)
    return KERNELS["grouped" if grouped else "looped"]()


def kernel_of(layer: MoELayer, device: torch.device, dtype: torch.dtype) -> ExpertKernel:
    """The kernel for the experts of ``layer``, which may be frozen with adapters beside."""
    if isinstance(layer, AdaptedLayer):
        return AdaptedKernel(layer.scaling)
    return kernel_for(device, dtype, layer.layout)


def fits_grouped(dtype: torch.dtype, layout: ChunkLayout) -> bool:
    """Whether ``F.grouped_mm`` takes these experts: not fp64, strides in multiples of 16 bytes."""
    strides = [layout.numel]
    for tensor in layout.tensors:
        strides += [tensor.offset, *(tensor.shape if len(tensor.shape) == 2 else ())]
    return dtype != torch.float64 and all(n * dtype.itemsize % 16 == 0 for n in strides)
