"""The dense part whole on every rank, its gradients summed by ``DistributedDataParallel``.

Annotations are evaluated in this file: DDP compares those of a communication hook with classes, and
refuses their names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from hecate.train.dense.parameters import allocate, master_dtype, named_dense
from hecate.train.dense.protocol import DenseJob


class Ddp:
    """Every rank has all dense parameters, their gradients and their optimizer's state.

    Experts are out of its sight: it would make all ranks' alike and average them. Where the forward
    pass computes in bf16, so do the model's parameters, and the masters are fp32 copies beside
    them; gradients cross ranks in fp32.
    """

    def __init__(self, job: DenseJob) -> None:
        self._job, self._last = job, True
        nn.Module.to(job.model, dtype=master_dtype(job.compute_dtype))
        allocate(job.root, job.model, job.ctx.device)
        job.experts.unregister()
        self._own: dict[str, nn.Parameter] = dict(named_dense(job.model))
        self._masters = self._own
        self._whole: nn.Module = job.root

    def targets(self) -> dict[str, torch.Tensor]:
        model = self._job.model
        whole: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
        return whole | dict(model.named_buffers())

    def start(self) -> None:
        job = self._job
        if job.compute_dtype != master_dtype(job.compute_dtype):
            self._masters = {
                name: nn.Parameter(parameter.detach().clone())
                for name, parameter in self._own.items()
            }
            for parameter in self._own.values():
                parameter.data = parameter.data.to(job.compute_dtype)
        if job.ctx.world_size > 1:
            whole = DistributedDataParallel(
                job.root,
                process_group=job.ctx.mesh.get_group(),
                forward_sync_buffers=False,  # they follow from configuration or global counts
                gradient_as_bucket_view=True,
            )
            whole.register_comm_hook(job.ctx.mesh.get_group(), _sum_in_full_precision)
            self._whole = whole

    def masters(self) -> dict[str, nn.Parameter]:
        return self._masters

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        self._last = last
        if isinstance(self._whole, DistributedDataParallel) and not last:
            with self._whole.no_sync():
                yield
        else:
            yield

    def forward(self, *inputs: Any) -> torch.Tensor:
        loss: torch.Tensor = self._whole(*inputs)
        return loss

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()
        if self._last and self._masters is not self._own:
            for name, parameter in self._own.items():
                if parameter.grad is not None:
                    self._masters[name].grad = parameter.grad.to(self._masters[name].dtype)
                    parameter.grad = None

    def square_sum(self) -> torch.Tensor:
        return torch.zeros((), dtype=torch.float64)

    def update(self, *, factor: float, learning_rate: float) -> None:
        if self._masters is not self._own:
            with torch.no_grad():
                torch._foreach_copy_(list(self._own.values()), list(self._masters.values()))

    def discard(self) -> None:
        pass

    def release(self) -> None:
        pass

    def saved(self, *, moments: bool) -> dict[str, torch.Tensor]:
        return {}

    def unfilled(self, *, moments: bool) -> dict[str, torch.Tensor]:
        return {}

    def restore(self, filled: dict[str, torch.Tensor], *, step: int) -> None:
        self.update(factor=1.0, learning_rate=0.0)


def _sum_in_full_precision(
    group: dist.ProcessGroup, bucket: GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """The sum of a bucket over ranks, not its mean, added up in fp32 or wider."""
    own = bucket.buffer()
    wide = own.to(torch.promote_types(own.dtype, torch.float32))
    work = dist.all_reduce(wide, group=group, async_op=True)
    assert work is not None

    def narrowed(future: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        return own.copy_(future.value()[0]) if wide is not own else future.value()[0]

    summed: torch.futures.Future[torch.Tensor] = work.get_future().then(narrowed)
    return summed
