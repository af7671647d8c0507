"""Adapters as PEFT puts them on a transformers model, or on one with DeepSpeed's MoE layers."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file

from hecate.bench.peers.protocol import Job
from hecate.bench.workloads import Workload
from hecate.mesh import ParallelContext
from hecate.models.lora import peft_format


def with_adapter(model: Any, job: Job) -> Any:
    """``model`` with the job's first adapters, which alone train."""
    from peft import PeftModel

    assert job.adapted is not None
    return PeftModel.from_pretrained(model, job.adapted.adapter, is_trainable=True).train()


def with_deepspeed_adapter(model: Any, job: Job, ctx: ParallelContext) -> Any:
    """``model``, whose MoE blocks are DeepSpeed's, with the job's first adapters beside the linear
    layers of its attention and of this rank's experts."""
    from peft import LoraConfig, get_peft_model

    assert job.adapted is not None
    lora = job.workload.lora
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=int(lora.alpha),
        lora_dropout=0.0,
        target_modules=r".*\.self_attn\.[qkvo]_proj|.*\.deepspeed_experts\.\d+\.(gate_up|down)",
    )
    adapted = get_peft_model(model, config)
    tensors = load_file(job.adapted.adapter / peft_format.WEIGHTS_FILE)
    parameter: Any
    for name, parameter in adapted.named_parameters():
        if ".deepspeed_experts." in name:
            # DeepSpeed marks what only the ranks of a group share before there are adapters.
            parameter.allreduce, parameter.group_name = False, f"ep_size_{ctx.world_size}"
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.copy_(_first_value(name, tensors, job.workload, ctx))
    return adapted.train()


def _first_value(
    name: str, tensors: dict[str, torch.Tensor], workload: Workload, ctx: ParallelContext
) -> torch.Tensor:
    """The adapter of ``name``, such as ``....deepspeed_experts.0.gate_up.lora_A.default.weight``,
    in PEFT's file, where an expert's is a part of one for all of its layer."""
    if ".deepspeed_experts." not in name:
        return tensors[name.replace(".default.", ".")]
    before, _, after = name.partition(".moe.deepspeed_moe.experts.deepspeed_experts.")
    own, projection, half, *_ = after.split(".")
    first = ctx.rank * workload.num_experts // ctx.world_size
    expert_id = first + int(own)
    wrapped = "base_layer." if projection == "gate_up" else ""
    stacked = tensors[f"{before}.experts.{wrapped}{half}.weight"]
    if half == "lora_A":
        return stacked.view(workload.num_experts, workload.lora.rank, -1)[expert_id]
    return stacked.view(len(stacked), workload.lora.rank, workload.num_experts)[..., expert_id]
