"""The dense parameters of a model on this rank: sharded by FSDP2, or whole where one rank is all.

Experts are not here: they have owners before the rest is sharded, and FSDP2 leaves them alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_utils import PreTrainedModel

from hecate.mesh import ParallelContext

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the optimizer works in when the forward pass computes in ``dtype``."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def shard_dense(
    root: nn.Module,
    model: PreTrainedModel,
    ctx: ParallelContext,
    compute_dtype: torch.dtype,
    experts: Iterable[nn.Parameter],
) -> None:
    """Shard ``root`` but its ``experts``, one group for each decoder layer, and allocate it.

    ``root`` wraps ``model``, whose parameters are on the meta device; afterwards they hold nothing
    useful yet. Gradients are summed over ranks, not averaged: the loss is already divided by the
    tokens of all ranks. Sharded parameters stay whole between forward and backward, since in a
    MoE model they are a small part of its memory. One rank that computes in its masters' dtype
    needs no sharding at all.
    """
    masters = master_dtype(compute_dtype)
    nn.Module.to(model, dtype=masters)
    if ctx.world_size > 1 or compute_dtype != masters:
        policy = MixedPrecisionPolicy(
            param_dtype=None if compute_dtype == masters else compute_dtype,
            reduce_dtype=masters,
        )
        blocks, ignored = set(model._no_split_modules or ()), set(experts)
        shards = [m for m in model.modules() if type(m).__name__ in blocks]
        for module in (*shards, root):
            fully_shard(
                module,
                mesh=ctx.mesh,
                mp_policy=policy,
                reshard_after_forward=False,
                ignored_params=ignored,
            )
        for module in root.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
    root._apply(lambda t: torch.empty_like(t, device=ctx.device) if t.is_meta else t)
    model.tie_weights()  # allocation gave each name a tensor of its own


def assign(target: torch.Tensor, value: torch.Tensor) -> None:
    """Set a parameter or buffer from its full value, keeping this rank's part of a shard."""
    with torch.no_grad():
        if isinstance(target, DTensor):
            value = value.to(target.device, target.dtype)
            whole = distribute_tensor(
                value, target.device_mesh, target.placements, src_data_rank=None
            )
            target.to_local().copy_(whole.to_local())
        else:
            target.copy_(value)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor, or the tensor itself; shares storage."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def named_dense(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter that is not an expert chunk, by its name in the transformers model."""
    for name, parameter in model.named_parameters():
        if not name.endswith(".chunks"):
            yield name, parameter


def saved_buffers(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The buffers that belong to the model's state, such as a router's balancing bias."""
    dense_or_expert = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in dense_or_expert:
            yield name, tensor


def sync_gradients(root: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass reduces dense gradients over ranks, or keeps adding."""
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(wanted)


def reshard(root: nn.Module) -> None:
    """Give back the whole dense parameters that a forward pass without a backward one left."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
