"""The dense part sharded by FSDP2, or whole where one rank is all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from hecate.train.dense.parameters import allocate, master_dtype, named_dense
from hecate.train.dense.protocol import DenseJob


class Fsdp2:
    """One group of shards for each decoder layer, and one for the rest.

    Sharded parameters stay whole between forward and backward, since in a MoE model they are a
    small part of its memory. One rank that computes in its masters' dtype needs no sharding at all.
    """

    def __init__(self, job: DenseJob) -> None:
        self._job = job
        root, model, compute_dtype = job.root, job.model, job.compute_dtype
        masters = master_dtype(compute_dtype)
        nn.Module.to(model, dtype=masters)
        if job.ctx.world_size > 1 or compute_dtype != masters:
            policy = MixedPrecisionPolicy(
                param_dtype=None if compute_dtype == masters else compute_dtype,
                reduce_dtype=masters,
            )
            blocks, ignored = set(model._no_split_modules or ()), set(job.experts.parameters())
            shards = [m for m in model.modules() if type(m).__name__ in blocks]
            for module in (*shards, root):
                fully_shard(
                    module,
                    mesh=job.ctx.mesh,
                    mp_policy=policy,
                    reshard_after_forward=False,
                    ignored_params=ignored,
                )
            for sharded in self._sharded():
                sharded.set_gradient_divide_factor(1.0)
                sharded.set_force_sum_reduction_for_comms(True)
        allocate(root, model, job.ctx.device)

    def _sharded(self) -> Iterator[FSDPModule]:
        for module in self._job.root.modules():
            if isinstance(module, FSDPModule):
                yield module

    def targets(self) -> dict[str, torch.Tensor]:
        model = self._job.model
        whole: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
        return whole | dict(model.named_buffers())

    def start(self) -> None:
        pass

    def masters(self) -> dict[str, nn.Parameter]:
        return dict(named_dense(self._job.model))

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        root: nn.Module = self._job.root
        if isinstance(root, FSDPModule):
            root.set_requires_gradient_sync(last)
        yield

    def forward(self, *inputs: Any) -> torch.Tensor:
        loss: torch.Tensor = self._job.root(*inputs)
        return loss

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def square_sum(self) -> torch.Tensor:
        return torch.zeros((), dtype=torch.float64)

    def update(self, *, factor: float, learning_rate: float) -> None:
        pass

    def discard(self) -> None:
        pass

    def release(self) -> None:
        for sharded in self._sharded():
            sharded.reshard()

    def saved(self, *, moments: bool) -> dict[str, torch.Tensor]:
        return {}

    def unfilled(self, *, moments: bool) -> dict[str, torch.Tensor]:
        return {}

    def restore(self, filled: dict[str, torch.Tensor], *, step: int) -> None:
        pass
