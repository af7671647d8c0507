"""A model's layers without their experts, timed in the trainer's own step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from hecate.bench.peers import Job
from hecate.bench.replay import Replay
from hecate.bench.strategies import TrainerStrategy
from hecate.mesh import ParallelContext

DEPTH = 3  # layers of the model that is timed; whole runs may have more


@dataclass(frozen=True)
class DenseSeconds:
    """One layer, both passes; what a step has once; the update of one parameter."""

    forward_s: float
    backward_s: float
    ends_s: float
    optimizer_s: float


def time_dense(job: Job, ctx: ParallelContext, repeats: int) -> DenseSeconds:
    """A model of ``DEPTH`` layers whose tokens pass the experts by, as the trainer runs it.

    A layer's time goes from its own start to the next one's, so that the exchange of its weights
    and gradients is in it.
    """
    work = job.workload
    shallow = replace(work, sizes={**work.sizes, "num_hidden_layers": DEPTH})
    nobody = np.zeros((1, DEPTH, work.num_experts), dtype=np.int64)
    strategy = TrainerStrategy(
        replace(job, workload=shallow),
        ctx,
        Replay(nobody, top_k=work.top_k, rank=ctx.rank),
        experts={"policy": "expert_parallel"},
    )
    strategy.pass_experts_by()
    marks = _LayerMarks(strategy.trainer.model)
    steps: list[tuple[float, float, float, float]] = []
    for number in range(2 + repeats):
        marks.clear()
        strategy.phases()
        dist.barrier(group=ctx.groups.control)
        started = time.perf_counter()
        strategy.run(number)
        step_s = time.perf_counter() - started
        steps.append((step_s, *marks.seconds(), strategy.phases()["optimizer"]))
    step_s, forward_s, backward_s, optimizer_s = (
        slowest_s(part, ctx) for part in zip(*steps[2:], strict=True)
    )
    dense = sum(parameter.numel() for parameter in strategy.trainer.dense.values())
    return DenseSeconds(
        forward_s,
        backward_s,
        max(0.0, step_s - DEPTH * (forward_s + backward_s) - optimizer_s),
        optimizer_s / (dense / ctx.world_size),
    )


@dataclass
class _LayerMarks:
    """When the decoder layers of a model begin their forward passes and end their backward ones."""

    model: nn.Module
    begins: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        blocks = set(getattr(self.model, "_no_split_modules", None) or ())
        for module in self.model.modules():
            # a sharded module's class is made from its own
            if blocks & {base.__name__ for base in type(module).__mro__}:
                module.register_forward_pre_hook(self._begin)

    def _begin(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.begins.append(time.perf_counter())
        if args[0].requires_grad:
            args[0].register_hook(lambda gradient: self.ends.append(time.perf_counter()))

    def clear(self) -> None:
        self.begins.clear()
        self.ends.clear()

    def seconds(self) -> tuple[float, float]:
        """Of a layer's forward pass and of its backward pass."""
        return _mean_gap(self.begins), _mean_gap(self.ends)


def _mean_gap(marks: list[float]) -> float:
    return (marks[-1] - marks[0]) / (len(marks) - 1)


def slowest_s(taken: Sequence[float], ctx: ParallelContext) -> float:
    """The median over repeats of the slowest rank's time; the same on all ranks.

    Ranks wait for one another after each part of a step, so that whoever is slower this time counts
    every time.
    """
    slowest = torch.tensor(taken, dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=ctx.groups.control)
    return float(median(slowest.tolist()))
