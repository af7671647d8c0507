"""One row of the experts' benchmark on one rank: every strategy in turn, step after step."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from hecate.bench.margins import Course
from hecate.bench.peers import Job
from hecate.bench.replay import Replay
from hecate.bench.strategies import PEERS, Strategy, build_strategy
from hecate.mesh import ParallelContext
from hecate.planner.load import Counts


@dataclass(frozen=True)
class Contest:
    """What a rank is to measure: ``names`` in turn, from ``first_step`` of the trace on.

    ``counts_SYE``: what each rank's tokens choose, step by step. The decisions of the steps before
    ``first_step - warm_up`` are taken without training, those of ``warm_up`` steps by training that
    is not timed. Whole rounds of ``round_steps`` follow, at least ``least_rounds``, until
    ``budget_s`` are over or the trace is. Outside peers, which keep nothing of earlier loads, take
    only every ``peers_every``-th step.
    """

    job: Job
    names: tuple[str, ...]
    counts_SYE: Counts = field(repr=False)
    first_step: int
    warm_up: int
    round_steps: int
    least_rounds: int
    budget_s: float
    peers_every: int

    def __call__(self, ctx: ParallelContext) -> dict[str, Course]:
        """Run it; what each strategy did on this rank."""
        started = time.monotonic()
        replay = Replay(self.counts_SYE, top_k=self.job.workload.top_k, rank=ctx.rank)
        skipped = self.first_step - self.warm_up
        laps = Laps(
            {
                name: build_strategy(name, self.job, ctx, replay, self.counts_SYE, skipped)
                for name in self.names
            },
            ctx,
            peers_every=self.peers_every,
        )
        for step in range(skipped, self.first_step):
            laps.run(step, timed=False)
        step, rounds = self.first_step, 0
        while step + self.round_steps <= len(self.counts_SYE):
            if rounds >= self.least_rounds and _over(started + self.budget_s, ctx):
                break
            for _ in range(self.round_steps):
                laps.run(step, timed=True)
                step += 1
            rounds += 1
        courses = laps.courses()
        del laps
        gc.collect()
        return courses


class Laps:
    """The steps of all strategies, each step's order one further round than the last one's."""

    def __init__(
        self, strategies: Mapping[str, Strategy], ctx: ParallelContext, *, peers_every: int = 1
    ) -> None:
        self._strategies, self._peers_every, self._ctx = strategies, peers_every, ctx
        self._taken: dict[str, list[tuple[int, float, float, int]]] = {n: [] for n in strategies}

    def run(self, step: int, *, timed: bool) -> None:
        for name in _rotated(tuple(self._strategies), step):
            if name in PEERS and timed and step % self._peers_every:
                continue
            strategy = self._strategies[name]
            strategy.prepare(step)
            dist.barrier(group=self._ctx.groups.control)
            started = time.perf_counter()
            figures = strategy.run(step)
            seconds = time.perf_counter() - started
            if timed:
                self._taken[name].append((step, seconds, figures.imbalance, figures.copies))
            elif not self._taken[name]:
                strategy.phases()  # what came before the first timed step counts for nobody

    def courses(self) -> dict[str, Course]:
        result = {}
        for name, strategy in self._strategies.items():
            taken = self._taken[name]
            steps, seconds, imbalances, copies = zip(*taken, strict=True)
            result[name] = Course(
                steps=steps,
                seconds=seconds,
                imbalances=imbalances,
                copies=copies,
                slot_bytes=strategy.slot_bytes(),
                phases={n: s / len(taken) for n, s in strategy.phases().items()},
            )
        return result


def _rotated(names: Sequence[str], by: int) -> tuple[str, ...]:
    first = by % len(names)
    return (*names[first:], *names[:first])


def _over(deadline: float, ctx: ParallelContext) -> bool:
    """Whether rank 0's clock is past ``deadline``; the same on all ranks."""
    over = torch.tensor(float(time.monotonic() > deadline))
    dist.broadcast(over, group_src=0, group=ctx.groups.control)
    return bool(over)
