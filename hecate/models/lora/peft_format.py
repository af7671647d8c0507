"""The adapter folder that PEFT reads, on names and shapes.

PEFT wraps each targeted linear layer, and each targeted parameter of an experts module
(``target_parameters``): the later parameter around the earlier one, so that all but the last have
``base_layer`` in their names. The adapters of all experts of a layer are two matrices there:
``lora_A`` ``[E * rank, in]``, expert after expert, and ``lora_B`` ``[out, rank * E]``, in whose
columns the expert changes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hecate.models.lora.config import LoraConfig
from hecate.models.lora.experts import AdaptedLayer
from hecate.models.lora.linear import LORA_A, LORA_B

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def linear_key(name: str) -> str:
    """PEFT's name of an adapter's parameter beside a linear layer, such as ``q.lora_A.weight``."""
    return f"{_PREFIX}{name}"


def expert_key(layer: AdaptedLayer, projection: str, half: str) -> str:
    """PEFT's name of ``half`` (``lora_A``, ``lora_B``) of all experts' adapters of a projection."""
    wrapped_later = len(layer.projections) - 1 - layer.projections.index(projection)
    return f"{_PREFIX}{layer.name}." + "base_layer." * wrapped_later + f"{half}.weight"


def stacked(half: str, of_experts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One matrix of all experts' ``lora_A`` (``[r, in]`` each) or ``lora_B`` (``[out, r]``)."""
    if half == LORA_A:
        return torch.cat(list(of_experts))
    return torch.stack(list(of_experts), dim=-1).flatten(1)


def halves(layer: AdaptedLayer) -> list[tuple[str, str]]:
    """(projection, half) of each adapter of an expert, in the order of ``layer.layout``."""
    return [(projection, half) for projection in layer.projections for half in (LORA_A, LORA_B)]


def adapter_config(
    config: LoraConfig, base: str, linears: Sequence[str], layers: Sequence[AdaptedLayer]
) -> dict[str, Any]:
    """``adapter_config.json``; every target by its full name, so that none can match by chance."""
    parameters = [f"{layer.name}.{name}" for layer in layers for name in layer.projections]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": list(linears),
        "target_parameters": parameters,
    }
