"""The norm of all gradients over all ranks: every shard and every expert counts once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def local_gradients(parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    """This rank's part of each gradient that there is; shares storage."""
    grads = (p.grad for p in parameters if p.grad is not None)
    return [part for part in map(local_part, grads) if part.numel()]


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What of ``tensor`` lies on this rank; shares storage."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def grad_square_sum(
    parameters: Iterable[nn.Parameter], owned: Iterable[nn.Parameter], rank: int
) -> torch.Tensor:
    """What this rank adds to the square of the global norm: a scalar, fp64, CPU."""
    grads = [(p, p.grad) for p in parameters if p.grad is not None]
    return power_sum(grads, owned, rank, power=2)


def power_sum(
    tensors: Iterable[tuple[nn.Parameter, torch.Tensor]],
    owned: Iterable[nn.Parameter],
    rank: int,
    *,
    power: int,
) -> torch.Tensor:
    """What this rank adds to the sum of ``|x| ** power`` over all ranks: a scalar, fp64, CPU.

    ``tensors``: each with the parameter that it belongs to and lies like. ``owned``: those
    parameters that no other rank has, which are the experts. Shards of a ``DTensor`` count on each
    rank, as often as they are not replicated; a plain tensor, which every rank has alike, on rank 0
    alone.
    """
    own = {id(parameter) for parameter in owned}
    norms, shares = [], []
    for parameter, tensor in tensors:
        if isinstance(tensor, DTensor):
            share, part = 1.0 / _replicas(tensor), tensor.to_local()
        elif id(parameter) in own or rank == 0:
            share, part = 1.0, tensor
        else:
            continue
        if part.numel():
            wide = torch.promote_types(part.dtype, torch.float32)
            norms.append(torch.linalg.vector_norm(part, ord=power, dtype=wide).to(torch.float64))
            shares.append(share)
    if not norms:
        return torch.zeros((), dtype=torch.float64)
    return (torch.stack(norms).cpu().pow(power) * torch.tensor(shares, dtype=torch.float64)).sum()


def clip_gradients(parameters: Iterable[nn.Parameter], norm: float, max_norm: float) -> None:
    """Scale every gradient, in place, so that a global ``norm`` becomes at most ``max_norm``."""
    grads = local_gradients(parameters)
    factor = clip_factor(norm, max_norm)
    if factor < 1.0 and grads:
        torch._foreach_mul_(grads, factor)


def clip_factor(norm: float, max_norm: float) -> float:
    """What gradients of a global ``norm`` are scaled by; 1 where it is at most ``max_norm``."""
    return max_norm / (norm + 1e-6) if norm > max_norm else 1.0


def _replicas(tensor: DTensor) -> int:
    """On how many ranks each element of ``tensor`` lies."""
    count = 1
    for axis, placement in enumerate(tensor.placements):
        if placement.is_replicate():
            count *= tensor.device_mesh.size(axis)
    return count
