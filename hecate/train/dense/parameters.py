"""The parameters of a model that are no experts: their dtypes, their names, their values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_utils import PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the optimizer works in when the forward pass computes in ``dtype``."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def allocate(root: nn.Module, model: PreTrainedModel, device: torch.device) -> None:
    """Give what is on the meta device memory on ``device``; it holds nothing useful yet."""
    root._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)
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
