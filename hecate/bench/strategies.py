"""Every way to place experts as something that can be asked for one step at a time.

All of them live in the same processes, so that each step of one has the same step of the others
beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from hecate.bench.peers import Job
from hecate.bench.peers.hecate_trainer import micro_batch, run_config
from hecate.bench.replay import Replay
from hecate.bench.workloads import Rows, read_batches
from hecate.fssdp.config import ExpertsConfig
from hecate.mesh import ParallelContext
from hecate.planner.load import Counts
from hecate.planner.policies import ForceBalanced, Policy, even_choices
from hecate.train.build import Trainer, build_trainer
from hecate.train.config import RunConfig
from hecate.train.metrics import PhaseClock

OURS = "fssdp"
CEILING = "force_balanced"
RIVALS = ("expert_parallel", "shadowing", "swapping", "replication", "fsdp")
POLICY_NAMES = (OURS, *RIVALS, CEILING)


@dataclass(frozen=True)
class StepFigures:
    """One step beside its seconds. ``imbalance``: slots of the busiest rank over the mean, the
    layers' maxima added up since layers follow each other; 0 where the strategy does not say."""

    imbalance: float = 0.0
    copies: int = 0


class Strategy(Protocol):
    """``prepare`` does what a step needs and nobody times; ``run`` is one whole optimizer step."""

    def prepare(self, step: int) -> None: ...

    def run(self, step: int) -> StepFigures: ...

    def slot_bytes(self) -> int: ...

    def phases(self) -> Mapping[str, float]: ...


class TrainerStrategy:
    """Our trainer under one policy; of the ceiling, only the choices are others."""

    def __init__(self, name: str, job: Job, ctx: ParallelContext, replay: Replay) -> None:
        self._replay = replay
        self._clock = PhaseClock(time.perf_counter)
        self._batches = [micro_batch(rows) for rows in read_batches_of(job, ctx)]
        config = run_config(job)
        policy: Policy | None = None
        override: Callable[[int, torch.Tensor], torch.Tensor] = replay
        if name == CEILING:
            policy, override = ForceBalanced(), _Even(ctx.rank, job)
        else:
            experts = ExpertsConfig.model_validate({"policy": name})
            config = RunConfig.model_validate({**dict(config), "experts": experts})
        self.trainer: Trainer = build_trainer(
            config,
            ctx,
            vocab_size=job.workload.vocab_size,
            phase=self._clock.phase,
            policy=policy,
            override=override,
        )

    def fast_forward(self, counts_SYE: Counts, steps: int, ctx: ParallelContext) -> None:
        """Take every decision of the first ``steps`` steps of a trace, without their training."""
        experts = self.trainer.experts
        for step in range(steps):
            experts.policy.plan(step, experts.loads, experts.owners)
            experts.loads.push(counts_SYE[step] * ctx.world_size)
            owners = experts.policy.new_owners(step, experts.loads, experts.owners)
            if owners is not experts.owners:
                experts.move_owners(owners, self.trainer.optimizer)

    def prepare(self, step: int) -> None:
        self._replay.prepare(step)

    def run(self, step: int) -> StepFigures:
        result = self.trainer.step.run(step, [self._batches[step % len(self._batches)]])
        computed_YW = result.computed_YW.numpy()
        mean = computed_YW.sum() / computed_YW.shape[1]
        return StepFigures(
            imbalance=float(computed_YW.max(1).sum() / mean) if mean else 0.0, copies=result.copies
        )

    def slot_bytes(self) -> int:
        return self.trainer.experts.materializer.slot_bytes

    def phases(self) -> Mapping[str, float]:
        """Seconds of each phase since the last call."""
        return self._clock.take()


class _Even:
    """The ceiling's choices; made once, since every step has the same."""

    def __init__(self, rank: int, job: Job) -> None:
        sizes = job.workload.sizes
        num_experts, top_k = int(str(sizes["num_experts"])), int(str(sizes["num_experts_per_tok"]))
        tokens = job.workload.tokens_per_step // job.layout.world_size
        self._choices_TK = torch.from_numpy(even_choices(tokens, top_k, num_experts, rank))

    def __call__(self, layer: int, top_k_index_TK: torch.Tensor) -> torch.Tensor:
        same = self._choices_TK.shape == top_k_index_TK.shape
        return self._choices_TK if same else top_k_index_TK


def read_batches_of(job: Job, ctx: ParallelContext) -> tuple[Rows, ...]:
    return read_batches(job.batches, ctx.rank, ctx.world_size)


def imbalance_of(counts_YE: Counts, world_size: int) -> float:
    """The trace's own imbalance over ranks that own an even part each, in one step."""
    num_experts = counts_YE.shape[1]
    owner_E = np.arange(num_experts) * world_size // num_experts
    loads_YW = np.stack([counts_YE[:, owner_E == r].sum(1) for r in range(world_size)], axis=1)
    return float(loads_YW.max(1).sum() / (loads_YW.sum() / world_size))
