"""One row of the experts' benchmark on one rank: every strategy in turn, step after step."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    is not timed. ``rounds`` of ``round_steps`` follow. Outside peers, which keep nothing of earlier
    loads, take whole rounds, but only every ``peers_every``-th.
    """

    job: Job
    names: tuple[str, ...]
    counts_SYE: Counts = field(repr=False)
    first_step: int
    warm_up: int
    round_steps: int
    rounds: int
    peers_every: int

    def __call__(self, ctx: ParallelContext) -> dict[str, Course]:
        """Run it; what each strategy did on this rank."""
        replay = Replay(self.counts_SYE, top_k=self.job.workload.top_k, rank=ctx.rank)
        skipped = self.first_step - self.warm_up
        strategies = {
            name: build_strategy(name, self.job, ctx, replay, self.counts_SYE, skipped)
            for name in self.names
        }
        laps = Laps(strategies, ctx)
        for step in range(skipped, self.first_step):
            laps.run(step, self.names, timed=False)
        own = tuple(name for name in self.names if name not in PEERS)
        for step in range(self.rounds * self.round_steps):
            with_peers = step // self.round_steps % self.peers_every == 0
            laps.run(self.first_step + step, self.names if with_peers else own)
        courses = laps.courses()
        del laps, strategies
        gc.collect()
        return courses


class Laps:
    """The steps of all strategies, each step's in another order."""

    def __init__(self, strategies: Mapping[str, Strategy], ctx: ParallelContext) -> None:
        self._strategies, self._ctx = strategies, ctx
        self._taken: dict[str, list[tuple[int, float, float, int]]] = {n: [] for n in strategies}

    def run(self, step: int, names: Sequence[str], *, timed: bool = True) -> None:
        """Step ``step`` of all ``names``, one after another, all ranks at once."""
        for name in turn_order(names, step):
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


def turn_order(names: Sequence[str], step: int) -> list[str]:
    """The order in which ``names`` take a step: shuffled anew, equal on all ranks.

    A step leaves caches, freed memory and threads behind that the next one finds, so that nobody
    should always come after the same one.
    """
    return random.Random(step).sample(names, len(names))
