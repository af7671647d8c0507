"""What a contender is, and what all of them are given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hecate.bench.turns import Turns
from hecate.bench.workloads import Layout, Workload
from hecate.mesh import ParallelContext
from hecate.train.optim import OptimizerConfig


@dataclass(frozen=True)
class Implementations:
    """Which of transformers' attention and experts implementations a peer runs."""

    attention: str
    experts: str


@dataclass(frozen=True)
class Adapted:
    """Where fine-tuning with adapters begins: the frozen model's folder, and one for PEFT."""

    base: Path
    adapter: Path


@dataclass(frozen=True)
class Job:
    """The same training for every contender: AdamW at a constant rate, clipping, no extra losses.

    ``batches`` and ``weights`` are files of ``hecate.bench.workloads``; ``adapted`` says where the
    workload's adapters begin, if it has any. ``implementations`` were
    measured to be the fastest here; ``None`` asks the contender to measure, with ``trial_runs``
    timed runs of each. ``keep_freed_memory``: let peers have the trainer's malloc settings too.
    """

    workload: Workload
    layout: Layout
    steps: int
    dtype: str
    seed: int
    batches: Path
    weights: Path
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    clip_norm: float = 1.0
    adapted: Adapted | None = None
    implementations: Implementations | None = None
    trial_runs: int = 2
    keep_freed_memory: bool = False


class Contender(Protocol):
    """Train ``job`` on this rank.

    Build everything, call ``turns.ready()``, then ``turns.step_done(loss)`` after each optimizer
    step, with this rank's share of the step's mean loss. ``turns`` decides when to go on and, by
    an exception, when to end. Threads and cores are set already.
    """

    def __call__(self, job: Job, ctx: ParallelContext, turns: Turns) -> None: ...
