"""The routers' own loads, written down while the demo model trains without a balancing loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hecate.bench.peers import Job
from hecate.bench.peers.hecate_trainer import micro_batch, run_config
from hecate.bench.workloads import read_batches
from hecate.mesh import ParallelContext
from hecate.planner.load import Counts
from hecate.train.build import build_trainer
from hecate.train.config import RunConfig
from hecate.train.metrics import PhaseClock


@dataclass(frozen=True)
class Recording:
    """Trains ``job.steps`` steps and keeps what every step's routers chose."""

    job: Job

    def __call__(self, ctx: ParallelContext) -> Counts:
        """Slots of each expert over all ranks, ``[steps, Y, E]``; the same on all ranks."""
        config = RunConfig.model_validate(
            {
                **dict(run_config(self.job)),
                "schedule": {"kind": "wsd", "warmup_steps": 30},
                "experts": {"policy": "expert_parallel"},
            }
        )
        clock = PhaseClock(lambda: 0.0)
        trainer = build_trainer(
            config, ctx, vocab_size=self.job.workload.vocab_size, phase=clock.phase
        )
        batches = read_batches(self.job.batches, ctx.rank, ctx.world_size)
        return np.stack(
            [
                trainer.step.run(step, [micro_batch(batches[step])]).counts_YE.numpy()
                for step in range(self.job.steps)
            ]
        )
