"""``hecate bench train``: this trainer beside plain transformers, ``Trainer`` and DeepSpeed.

All contenders of a model and a process layout are built once and then train in turns, a few steps
each, in an order that rotates from round to round. What is compared is the ratio within a round,
which a machine that slows down leaves as it is. Weights, rows, dtype, packing, optimizer, clipping
and threads are the same for all; each peer runs with what is fastest for it here.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console

from hecate.bench.compare import Measured, row_of, summarise
from hecate.bench.crew import ContenderError, Crew, crew_of, usable_cores
from hecate.bench.peers import CONTENDERS, OURS, Entry, Implementations, Job
from hecate.bench.report import BenchOptions, Report
from hecate.bench.turns import Turn
from hecate.bench.workloads import (
    LAYOUTS,
    WORKLOADS,
    Layout,
    Say,
    Workload,
    write_batches,
    write_weights,
)
from hecate.data import DataConfig
from hecate.data.progress import progress_bars
from hecate.train.optim import OptimizerConfig

SEED = 1
OPTIMIZER = OptimizerConfig(learning_rate=5e-4)
STANDARD_LIBRARY = DataConfig()

# Over the steps of a run; sums in another order make single steps differ by far less in fp32.
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2}

COLUMNS = {
    "model": "model",
    "layout": "layout",
    "contender": "contender",
    "settings": "settings",
    "tokens_per_s": "tokens/s",
    "ours_over_it": "ours / it",
    "ours_over_it_range": "min - max",
    "loss_difference": "loss differs by",
    "peak_mib": "peak MiB",
    "status": "status",
}


@dataclass(frozen=True)
class Pace:
    """How long to measure.

    A turn has the steps that the fastest contender needs about ``turn_s`` for. Rounds go on until
    all stages together have taken ``total_s``, shared evenly among those that are left, but not
    below ``least_rounds`` nor above ``most_rounds``.
    """

    warm_up_steps: int
    turn_s: float
    least_rounds: int
    most_rounds: int
    most_turn_steps: int
    total_s: float
    answer_timeout_s: float = 300.0

    @property
    def most_steps(self) -> int:
        return self.warm_up_steps + self.most_rounds * self.most_turn_steps

    def steps_of_a_turn(self, step_s: float) -> int:
        return max(1, min(self.most_turn_steps, math.ceil(self.turn_s / step_s)))


QUICK = Pace(
    warm_up_steps=1, turn_s=1.5, least_rounds=2, most_rounds=6, most_turn_steps=4, total_s=320
)
WHOLE = Pace(
    warm_up_steps=4, turn_s=6, least_rounds=7, most_rounds=15, most_turn_steps=12, total_s=1800
)


def bench_train(options: BenchOptions) -> Report:
    """Both models in both layouts. Raises ``ContenderError`` when our own trainer fails."""
    console = Console(stderr=True)
    pace = QUICK if options.quick else WHOLE
    load = os.getloadavg()[0]
    stages = measure(
        tuple(WORKLOADS.values()),
        tuple(LAYOUTS.values()),
        CONTENDERS,
        pace,
        dtype=options.dtype,
        console=console,
    )
    return report_of(stages, pace, dtype=options.dtype, load_before=load)


def measure(
    workloads: Sequence[Workload],
    layouts: Sequence[Layout],
    contenders: Mapping[str, Entry],
    pace: Pace,
    *,
    dtype: str,
    console: Console,
    data: DataConfig = STANDARD_LIBRARY,
    keep_freed_memory: bool = False,
) -> list[list[Measured]]:
    """Every workload in every layout, one after another: what each contender did.

    ``keep_freed_memory`` gives peers the malloc settings that our trainer has, which shows what
    these settings alone are worth.
    """
    stages: list[list[Measured]] = []
    deadline = time.monotonic() + pace.total_s

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with tempfile.TemporaryDirectory(prefix="hecate-bench-") as temporary:
        folder = Path(temporary)
        for workload in workloads:
            with progress_bars(console) as progress:
                batches = write_batches(
                    workload,
                    pace.most_steps,
                    data=data,
                    seed=SEED,
                    folder=folder,
                    progress=progress,
                )
            weights = write_weights(workload, seed=SEED, folder=folder)
            for layout in layouts:
                job = Job(
                    workload=workload,
                    layout=layout,
                    steps=pace.most_steps,
                    dtype=dtype,
                    seed=SEED,
                    batches=batches,
                    weights=weights,
                    optimizer=OPTIMIZER,
                    keep_freed_memory=keep_freed_memory,
                )
                left = len(workloads) * len(layouts) - len(stages)
                budget_s = (deadline - time.monotonic()) / left
                stage = _Stage(job, contenders, pace, time.monotonic() + budget_s, folder, say)
                stages.append(stage.run())
    return stages


class _Stage:
    """One model in one layout: build all contenders, warm up, take turns."""

    def __init__(
        self,
        job: Job,
        contenders: Mapping[str, Entry],
        pace: Pace,
        deadline: float,
        folder: Path,
        say: Say,
    ) -> None:
        self._job, self._contenders, self._pace = job, contenders, pace
        self._deadline, self._say = deadline, say
        self._folder = folder / f"{job.workload.name}-{job.layout.name}"
        self._folder.mkdir()
        self._name = f"{job.workload.name} {job.layout.name}"
        self._measured: dict[str, Measured] = {}
        self._crews: dict[str, Crew] = {}

    def run(self) -> list[Measured]:
        with ExitStack() as stack:
            self._build(stack)
            self._take_turns()
        return [self._measured[name] for name in self._contenders]

    def _build(self, stack: ExitStack) -> None:
        """One contender after another, the plain one first: it finds what is fastest for all."""
        job = self._job
        for name in sorted(self._contenders, key=lambda name: name != "plain"):
            entry = self._contenders[name]
            self._measured[name] = Measured(
                job.workload.name,
                job.layout.name,
                name,
                entry.title,
                job.workload.tokens_per_step,
                problem=entry.missing(),
            )
            if entry.missing():
                continue
            self._say(f"{self._name}: building {entry.title}")
            crew = stack.enter_context(
                crew_of(
                    name,
                    entry.train,
                    job,
                    cores=usable_cores(),
                    folder=self._folder,
                    timeout_s=self._pace.answer_timeout_s,
                )
            )
            try:
                settings = crew.wait_ready()
            except ContenderError as failure:
                self._drop(name, crew, failure)
                continue
            self._measured[name] = replace(self._measured[name], settings=settings)
            self._crews[name] = crew
            if name == "plain":
                chosen = Implementations(settings["attention"], settings["experts"])
                job = replace(job, implementations=chosen)

    def _take_turns(self) -> None:
        pace = self._pace
        warm_up = self._round(list(self._crews), pace.warm_up_steps)
        for name, turn in warm_up.items():
            self._measured[name] = replace(self._measured[name], warm_up=turn)
        fastest_s = min(turn.seconds for turn in warm_up.values()) / pace.warm_up_steps
        steps = pace.steps_of_a_turn(fastest_s)
        for number in range(pace.most_rounds):
            if number >= pace.least_rounds and time.monotonic() > self._deadline:
                break
            order = list(self._crews)
            shift = number % len(order)
            turns = self._round(order[shift:] + order[:shift], steps)
            rates = {
                self._contenders[name].title: self._job.workload.tokens_per_step * steps / t.seconds
                for name, t in turns.items()
            }
            text = ", ".join(f"{title} {rate:,.0f}" for title, rate in sorted(rates.items()))
            self._say(f"{self._name}: round {number + 1}, tokens/s: {text}")
            for name, turn in turns.items():
                measured = self._measured[name]
                self._measured[name] = replace(measured, turns=(*measured.turns, turn))

    def _round(self, order: Sequence[str], steps: int) -> dict[str, Turn]:
        turns = {}
        for name in order:
            try:
                turns[name] = self._crews[name].turn(steps)
            except ContenderError as failure:
                self._drop(name, self._crews.pop(name), failure)
        return turns

    def _drop(self, name: str, crew: Crew, failure: ContenderError) -> None:
        """Go on without a peer that failed; without ourselves there is nothing to measure."""
        crew.kill()
        if name == OURS:
            raise failure
        self._say(f"{self._name}: {failure}")
        reason = failure.got.splitlines()[0]
        self._measured[name] = replace(self._measured[name], problem=f"failed: {reason}")


def report_of(
    stages: Sequence[Sequence[Measured]], pace: Pace, *, dtype: str, load_before: float
) -> Report:
    """The report of what ``measure`` found; ``load_before``: the machine's load average then."""
    tolerance = LOSS_TOLERANCE[dtype]
    rows = []
    for stage in stages:
        ours = next(m for m in stage if m.contender == OURS)
        rows += [row_of(ours, measured, tolerance=tolerance) for measured in stage]
    settings: dict[str, JsonValue] = {
        "dtype": dtype,
        "seed": SEED,
        "optimizer": OPTIMIZER.model_dump(mode="json"),
        "clip_norm": 1.0,
        "loss_tolerance": tolerance,
        "load_average_before": round(load_before, 2),
        "pace": {
            "warm_up_steps": pace.warm_up_steps,
            "least_rounds": pace.least_rounds,
            "most_rounds": pace.most_rounds,
            "total_s": pace.total_s,
        },
        "models": {
            workload.name: {
                "family": workload.family,
                "sizes": dict(workload.sizes),
                "sequence_tokens": workload.sequence_tokens,
                "batch_sequences": workload.batch_sequences,
            }
            for workload in WORKLOADS.values()
        },
        "layouts": {
            layout.name: f"{layout.world_size} process(es) x {layout.threads} thread(s)"
            for layout in LAYOUTS.values()
        },
    }
    return Report(
        "train",
        settings,
        COLUMNS,
        tuple(rows),
        summarise(stages, OURS),
        _notes(rows, tolerance, load_before),
    )


def _notes(
    rows: Sequence[Mapping[str, JsonValue]], tolerance: float, load_before: float
) -> tuple[str, ...]:
    notes = [
        "tokens/s: median over rounds; ours / it: median over rounds of the ratio within a round.",
        "hecate keeps freed memory in the process (hecate/train/host_memory.py), as its trainer "
        "always does; peers run with malloc as it is.",
    ]
    if load_before > 1:
        notes.append(
            f"the machine was busy before this began (load average {load_before:.1f}): only the "
            "ratios mean anything."
        )
    for row in rows:
        if row.get("same_curve") is False:
            notes.append(
                f"{row['model']} {row['layout']}: the losses of {row['contender']} differ by up to "
                f"{row['loss_difference']:.1e}, more than {tolerance:.0e}."
            )
    return tuple(notes)
