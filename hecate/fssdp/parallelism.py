"""A model that tensor, pipeline or device-wise parallelism has split is refused, by name.

Every rank runs the whole model on tokens of its own. On ranks that share a token, or hold a part of
the layers, copies and gradients of experts would be wrong without a word.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hecate.errors import UsageError

_WHOLE = "a whole model on every rank, each rank with tokens of its own"


def require_data_parallel(model: nn.Module) -> None:
    """Raise ``UsageError`` for a model whose layers or matrices lie on several ranks or devices."""
    _refuse_transformers_plans(model)
    for name, module in model.named_modules():
        if isinstance(module, FSDPModule):
            raise UsageError(
                f"FSDP2 shards {name or 'the model'} already",
                got="fully_shard before shard_experts",
                expected=_WHOLE,
                fix="call shard_experts first, then fully_shard(..., "
                "ignored_params=set(experts.parameters()))",
            )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            raise UsageError(
                f"tensor parallelism splits {name}",
                got=f"a DTensor, {parameter.placements} over {parameter.device_mesh}",
                expected=_WHOLE,
                fix="leave out parallelize_module; dense parameters are sharded by fully_shard "
                "over all ranks after shard_experts, and activation checkpointing saves more",
            )
    _refuse_missing_layers(model)


def _refuse_transformers_plans(model: Any) -> None:
    if (getattr(model, "_tp_size", None) or 1) > 1:
        raise UsageError(
            "transformers split this model by its tp_plan",
            got=f"tp_size = {model._tp_size}",
            expected=_WHOLE,
            fix="load it without tp_plan, tp_size and distributed_config",
        )
    if getattr(model, "_pp_stage", None) is not None:
        raise UsageError(
            "transformers split this model into pipeline stages",
            got=f"a stage of it: {type(model._pp_stage).__name__}",
            expected=_WHOLE,
            fix="load it without a pipeline size in distributed_config",
        )
    devices = {str(device) for device in getattr(model, "hf_device_map", {}).values()}
    if len(devices) > 1:
        raise UsageError(
            "device_map spread the layers of this model over devices",
            got=", ".join(sorted(devices)),
            expected=_WHOLE,
            fix="load it without device_map; shard_experts moves what a rank owns to its device",
        )


def _refuse_missing_layers(model: Any) -> None:
    """A stage of a pipeline keeps the configuration of the whole."""
    config = getattr(model, "config", None)
    trunk = getattr(model, getattr(model, "base_model_prefix", "") or "model", None)
    layers = getattr(trunk, "layers", None)
    if config is None or not isinstance(layers, nn.ModuleList | nn.ModuleDict):
        return
    wanted = getattr(config.get_text_config(), "num_hidden_layers", len(layers))
    if len(layers) < wanted:
        raise UsageError(
            "this model lacks layers that its configuration has, as a pipeline stage does",
            got=f"{len(layers)} layers",
            expected=f"{wanted}: {_WHOLE}",
            fix="hand over the whole model; FSSDP shards experts, FSDP2 the rest, over all ranks",
        )
