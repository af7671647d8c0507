"""One training of the demo's text under one policy, as a task of a crew's ranks."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from hecate.bench.divergence import Curve
from hecate.bench.peers import Job
from hecate.bench.peers.hecate_trainer import micro_batch, run_config
from hecate.bench.workloads import Rows, read_batches
from hecate.data import MicroBatch
from hecate.fssdp.config import ExpertsConfig
from hecate.fssdp.reshard import moves_between
from hecate.fssdp.routing import RouterConfig
from hecate.mesh import ParallelContext
from hecate.train.build import build_trainer
from hecate.train.host_memory import keep_freed_memory
from hecate.train.metrics import load_statistics
from hecate.train.optim import ScheduleConfig


@dataclass(frozen=True)
class Training:
    """Train the first ``steps`` of ``job``, with the experts and router losses that are given here.

    ``micro_batches``: which of its rows of a step a rank takes in which of them; empty for all
    rows at once, in the order that they have. Without a balance loss, which is a micro-batch's own,
    this changes nothing but the order of sums.
    """

    job: Job
    steps: int
    experts: ExpertsConfig
    router: RouterConfig
    schedule: ScheduleConfig
    micro_batches: tuple[tuple[int, ...], ...] = ()

    def __call__(self, ctx: ParallelContext) -> Curve:
        """The same curve on every rank."""
        keep_freed_memory()
        sections = {"experts": self.experts, "router": self.router, "schedule": self.schedule}
        trainer = build_trainer(
            run_config(self.job).model_copy(update=sections),
            ctx,
            vocab_size=self.job.workload.vocab_size,
            phase=lambda name: nullcontext(),
        )
        losses, norms, copies, moves, imbalances = [], [], [], [], []
        batches = read_batches(self.job.batches, ctx.rank, ctx.world_size)
        for step, rows in enumerate(batches[: self.steps]):
            before = trainer.experts.owners
            result = trainer.step.run(step, self._cut(rows))
            loads = load_statistics(result.counts_YE, before)
            losses.append(result.loss)
            norms.append(result.grad_norm)
            copies.append(result.experts.copies)
            moves.append(len(moves_between(before, trainer.experts.owners)))
            imbalances.append(max(load.ranks_max_over_mean for load in loads))
        return Curve(tuple(losses), tuple(norms), tuple(copies), tuple(moves), tuple(imbalances))

    def _cut(self, rows: Rows) -> list[MicroBatch]:
        if not self.micro_batches:
            return [micro_batch(rows)]
        parts = (list(part) for part in self.micro_batches)
        return [
            micro_batch(
                Rows(
                    rows.input_ids[part],
                    rows.labels[part],
                    rows.position_ids[part],
                    rows.step_labels,
                )
            )
            for part in parts
        ]
