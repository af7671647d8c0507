"""Models that other forms of parallelism have split are refused before anything is sharded."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from toy_models import FAMILIES, toy_model

from hecate.errors import UsageError
from hecate.fssdp import shard_experts
from hecate.fssdp.parallelism import require_data_parallel
from hecate.mesh import ParallelContext


def refused(ctx: ParallelContext, how: str) -> str:
    model = toy_model("qwen3_moe")
    if how == "tensor":
        parallelize_module(model.model.layers[1].self_attn.q_proj, ctx.mesh, ColwiseParallel())
    else:
        fully_shard(model.model.norm, mesh=ctx.mesh)
    with pytest.raises(UsageError) as caught:
        shard_experts(model, ctx)
    assert not any(hasattr(module, "runtime") for module in model.modules()), "left as it was"
    return str(caught.value)


def test_a_matrix_over_ranks_is_named() -> None:
    for message in run_ranks(refused, 2, "tensor"):
        assert "tensor parallelism splits model.layers.1.self_attn.q_proj.weight" in message
        assert "leave out parallelize_module" in message


def test_fully_shard_comes_after() -> None:
    for message in run_ranks(refused, 2, "fsdp"):
        assert "FSDP2 shards model.norm already" in message


def test_a_tp_plan_that_transformers_applied_is_named() -> None:
    model = toy_model("qwen3_moe")
    model._tp_size = 2
    with pytest.raises(UsageError, match=r"by its tp_plan\n.*tp_size = 2"):
        require_data_parallel(model)
    model._tp_size = 1
    require_data_parallel(model)


def test_layers_over_devices_are_named() -> None:
    model = toy_model("qwen3_moe")
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(UsageError, match="device_map spread the layers"):
        require_data_parallel(model)
    model.hf_device_map = {"": 0}
    require_data_parallel(model)


def test_a_stage_of_a_pipeline_is_named() -> None:
    model = toy_model("qwen3_moe")
    kept = torch.nn.ModuleDict({"1": model.model.layers[1]})
    model.model.layers = kept
    with pytest.raises(UsageError, match="as a pipeline stage does") as caught:
        require_data_parallel(model)
    assert "1 layers" in caught.value.got
    assert caught.value.expected.startswith("2: ")


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_models_pass(family: str) -> None:
    require_data_parallel(toy_model(family))
