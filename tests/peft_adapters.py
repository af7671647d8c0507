"""Adapters as PEFT itself makes, saves and merges them; random in both halves."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


def save_adapter(
    folder: Path,
    model: PreTrainedModel,
    *,
    rank: int = 4,
    modules: Sequence[str] = ATTENTION,
    parameters: Sequence[str] = (),
    seed: int = 0,
    scale: float = 0.3,
    **more: Any,
) -> Path:
    """Write an adapter of ``model``, which stays as it is, to ``folder``."""
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(modules),
        target_parameters=list(parameters),
        task_type="CAUSAL_LM",
        **more,
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * scale / parameter.shape[-1] ** 0.5)
    adapted.save_pretrained(folder)
    return folder


def merged(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A copy of ``model`` with the adapter in its weights, as PEFT merges it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).merge_and_unload()
    assert isinstance(whole, PreTrainedModel)
    return whole.eval()
