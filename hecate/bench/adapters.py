"""What fine-tuning with adapters begins with, written once for every contender."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hecate.bench.workloads import Workload
from hecate.models.build import hf_config, meta_model
from hecate.models.families import find_moe_layers
from hecate.models.lora import adapt_linears, adapted_layers
from hecate.models.lora import peft_format as peft
from hecate.models.lora.initial import initial_adapters, initial_expert_adapter


def write_base(workload: Workload, weights: Path, folder: Path) -> Path:
    """The model of ``weights`` (see ``write_weights``) as a folder of transformers."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            hf_config(workload.model, vocab_size=workload.vocab_size), dtype=torch.float32
        )
    model.to_empty(device="cpu")
    model.tie_weights()
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, value in load_file(weights).items():
            own[name].copy_(value)
    path = folder / f"{workload.name}-base"
    model.save_pretrained(path)
    return path


def write_adapter(workload: Workload, base: Path, *, seed: int, folder: Path) -> Path:
    """The trainer's first adapters of the workload's model as a folder that PEFT reads."""
    lora = workload.lora
    model = meta_model(hf_config(workload.model, vocab_size=workload.vocab_size))
    layers = adapted_layers(model, find_moe_layers(model), lora)
    linears = adapt_linears(model, lora)
    shapes = ((name, tuple(parameter.shape)) for name, parameter in model.named_parameters())
    tensors = {peft.linear_key(name): value for name, value in initial_adapters(shapes, seed)}
    for layer in layers:
        experts = [initial_expert_adapter(layer, e, seed) for e in range(layer.num_experts)]
        for projection, half in peft.halves(layer):
            of_experts = [expert[f"{projection}.{half}"] for expert in experts]
            tensors[peft.expert_key(layer, projection, half)] = peft.stacked(half, of_experts)
    path = folder / f"{workload.name}-adapter"
    path.mkdir()
    save_file({name: t.contiguous() for name, t in tensors.items()}, path / peft.WEIGHTS_FILE)
    settings = peft.adapter_config(lora, str(base), linears, layers)
    (path / peft.CONFIG_FILE).write_text(json.dumps(settings), encoding="utf-8")
    return path
