"""Adapters with random weights, in folders as PEFT writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from hecate.errors import ModelError
from hecate.models.lora import peft_format as peft

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def write_adapters(base: Path, ranks: Sequence[int], folder: Path) -> list[Path]:
    """One adapter of attention's projections for each of ``ranks``. Raises ``ModelError``."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    linears = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith(PROJECTIONS)
    }
    if not linears:
        raise ModelError(
            f"no adapter is known for {base}",
            got="no linear layers of attention",
            expected=f"layers whose names end with {', '.join(PROJECTIONS)}",
        )
    paths = []
    for number, rank in enumerate(ranks):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for name, (inputs, outputs) in linears.items():
            for half, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                values = torch.randn(shape, generator=generator) * shape[1] ** -0.5
                tensors[peft.linear_key(f"{name}.lora_{half}.weight")] = values.bfloat16()
        path = folder / f"{number}"
        path.mkdir(parents=True)
        save_file(tensors, path / peft.WEIGHTS_FILE)
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none"}
        settings["target_modules"] = list(PROJECTIONS)
        (path / peft.CONFIG_FILE).write_text(json.dumps(settings), encoding="utf-8")
        paths.append(path)
    return paths
