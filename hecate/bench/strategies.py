"""Every way to place experts as something that can be asked for one step at a time.

All of them live in the same processes, so that each step of one has the same step of the others
beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch

from collectives.transports import Transport
from hecate.bench.peers import CONTENDERS, Implementations, Job, deepspeed_moe, fsdp2
from hecate.bench.peers.hecate_trainer import micro_batch, run_config
from hecate.bench.peers.transformers_model import fastest_implementations
from hecate.bench.replay import Replay
from hecate.bench.workloads import Rows, read_batches
from hecate.fssdp.config import ExpertsConfig
from hecate.fssdp.lifecycle import Stage, StepLifecycle
from hecate.fssdp.routed import Override
from hecate.mesh import ParallelContext
from hecate.planner.load import Counts
from hecate.planner.policies import ForceBalanced, Policy, even_choices
from hecate.train.build import Trainer, build_trainer
from hecate.train.config import RunConfig
from hecate.train.metrics import PhaseClock

OURS = "fssdp"
CEILING = "force_balanced"
RIVALS = ("expert_parallel", "shadowing", "swapping", "replication", "fsdp")
DEEPSPEED, FSDP2 = "deepspeed_moe", "fsdp2"
PEERS = (DEEPSPEED, FSDP2)
EVERYONE = (OURS, *RIVALS, *PEERS, CEILING)
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "fssdp_paper": {"materialization": "paper"},
    "fssdp_even": {"dispatch": "even"},
    "fssdp_planned": {"calibrate": False},
}
"""Ours with one of its rules another; neither ours nor rivals."""
WITHOUT_EXPERTS = "without_experts"
"""Expert parallelism whose tokens pass the experts by: what is left of the step is not MoE."""


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
    """Our trainer with a trace in the place of its routers' choices.

    ``experts``: settings of ``experts`` that differ from the defaults. ``policy`` and
    ``gathers_by`` as in ``build_trainer``. ``override`` stands in for the replay's choices.
    """

    def __init__(
        self,
        job: Job,
        ctx: ParallelContext,
        replay: Replay,
        *,
        experts: Mapping[str, object] | None = None,
        policy: Policy | None = None,
        override: Override | None = None,
        gathers_by: Callable[[Transport], Transport] | None = None,
    ) -> None:
        self._replay = replay
        self._clock = PhaseClock(time.perf_counter)
        self._batches = [
            micro_batch(rows) for rows in read_batches(job.batches, ctx.rank, ctx.world_size)
        ]
        settings = ExpertsConfig.model_validate(dict(experts or {}))
        self.trainer: Trainer = build_trainer(
            RunConfig.model_validate({**dict(run_config(job)), "experts": settings}),
            ctx,
            vocab_size=job.workload.vocab_size,
            phase=self._clock.phase,
            policy=policy,
            override=override or replay,
            gathers_by=gathers_by,
        )

    def pass_experts_by(self) -> None:
        """Leave dispatch, exchange, experts and combine out of every step from now on."""
        experts = self.trainer.experts
        for layer in self.trainer.layers:
            module = self.trainer.model.get_submodule(layer.name)
            module.runtime = _PassedBy(  # type: ignore[assignment]
                experts.lifecycle, layer.index
            )

    def fast_forward(self, counts_SYE: Counts, steps: int, world_size: int) -> None:
        """Take every decision of the first ``steps`` steps of a trace, without their training."""
        experts = self.trainer.experts
        for step in range(steps):
            experts.policy.plan(step, experts.loads, experts.owners)
            experts.loads.push(counts_SYE[step] * world_size)
            owners = experts.policy.new_owners(step, experts.loads, experts.owners)
            if owners is not experts.owners:
                experts.move_owners(owners, self.trainer.optimizer)

    def prepare(self, step: int) -> None:
        self._replay.prepare(step)

    def run(self, step: int) -> StepFigures:
        result = self.trainer.step.run(step, [self._batches[step % len(self._batches)]])
        computed_YW = result.experts.computed_slots
        mean = computed_YW.sum() / computed_YW.shape[1]
        return StepFigures(
            imbalance=float(computed_YW.max(1).sum() / mean) if mean else 0.0,
            copies=result.experts.copies,
        )

    def slot_bytes(self) -> int:
        return self.trainer.experts.materializer.slot_bytes

    def phases(self) -> Mapping[str, float]:
        """Seconds of each phase since the last call."""
        return self._clock.take()


class PeerStrategy:
    """An outside peer with the trace in the place of its routers' choices."""

    def __init__(self, name: str, job: Job, ctx: ParallelContext, replay: Replay) -> None:
        self._replay = replay
        self._step: Callable[[Rows], float]
        self._batches = read_batches(job.batches, ctx.rank, ctx.world_size)
        if name == DEEPSPEED:
            engine = deepspeed_moe.build_engine(job, ctx, replay)
            self._step = partial(deepspeed_moe.one_step, engine, job=job, ctx=ctx)
        else:
            implementations = job.implementations or Implementations("sdpa", "grouped_mm")
            self._step = fsdp2.Fsdp2(job, ctx, implementations, replay).step

    def prepare(self, step: int) -> None:
        self._replay.prepare(step)

    def run(self, step: int) -> StepFigures:
        self._step(self._batches[step % len(self._batches)])
        return StepFigures()

    def slot_bytes(self) -> int:
        return 0

    def phases(self) -> Mapping[str, float]:
        return {}


class _PassedBy:
    """In the place of a layer's experts: dispatch, exchange, experts and combine are left out."""

    def __init__(self, lifecycle: StepLifecycle, layer: int) -> None:
        self._lifecycle, self._layer = lifecycle, layer

    def __call__(
        self, x_TD: torch.Tensor, top_k_index_TK: torch.Tensor, top_k_weights_TK: torch.Tensor
    ) -> torch.Tensor:
        passed_TD = x_TD * top_k_weights_TK.sum(-1, keepdim=True)  # the router still learns
        if self._layer == 0 and self._lifecycle.stage is Stage.RUNNING:
            self._lifecycle.enter_forward()
            passed_TD.register_hook(lambda gradient: self._lifecycle.leave_backward())
        return passed_TD


class _Even:
    """The ceiling's choices; made once, since every step has the same."""

    def __init__(self, rank: int, job: Job) -> None:
        work = job.workload
        tokens = work.tokens_per_step // job.layout.world_size
        self._choices_TK = torch.from_numpy(
            even_choices(tokens, work.top_k, work.num_experts, rank)
        )

    def __call__(self, layer: int, top_k_index_TK: torch.Tensor) -> torch.Tensor:
        same = self._choices_TK.shape == top_k_index_TK.shape
        return self._choices_TK if same else top_k_index_TK


@dataclass(frozen=True)
class FastestImplementations:
    """Finds what transformers runs fastest here, for the peers."""

    job: Job

    def __call__(self, ctx: ParallelContext) -> tuple[Implementations, str]:
        chosen, _, tried = fastest_implementations(self.job, ctx)
        return chosen, tried


def missing(name: str) -> str:
    """What is not installed of an outside peer, and how to get it; "" where nothing is."""
    return CONTENDERS[name].missing() if name in CONTENDERS else ""


def build_strategy(
    name: str, job: Job, ctx: ParallelContext, replay: Replay, counts_SYE: Counts, skipped: int
) -> Strategy:
    """A strategy by name that has taken the decisions of the first ``skipped`` steps."""
    if name in PEERS:
        return PeerStrategy(name, job, ctx, replay)
    if name == CEILING:
        return TrainerStrategy(
            job, ctx, replay, policy=ForceBalanced(), override=_Even(ctx.rank, job)
        )
    if name == WITHOUT_EXPERTS:
        strategy = TrainerStrategy(job, ctx, replay, experts={"policy": "expert_parallel"})
        strategy.pass_experts_by()
        return strategy
    experts: dict[str, object] = {"policy": name}
    if name in VARIANTS:
        experts = {"policy": OURS, OURS: VARIANTS[name]}
    strategy = TrainerStrategy(job, ctx, replay, experts=experts)
    strategy.fast_forward(counts_SYE, skipped, ctx.world_size)
    return strategy


def imbalance_of(counts_SYE: Counts, world_size: int) -> float:
    """The trace's own imbalance over ranks that own an even part each; the mean over its steps."""
    num_experts = counts_SYE.shape[2]
    owner_E = np.arange(num_experts) * world_size // num_experts
    loads_SYW = np.stack([counts_SYE[..., owner_E == r].sum(2) for r in range(world_size)], axis=2)
    busiest_S, all_S = loads_SYW.max(2).sum(1), loads_SYW.sum((1, 2))
    return float((busiest_S / (all_S / world_size)).mean())
