"""``hecate bench fssdp``: FSSDP, its rivals and the ceiling, under loads that are replayed.

All strategies of a row are trainers in the same two processes, and take each step in turn. What is
compared is the ratio within a round, which a machine that slows down leaves as it is. Choices of
the trace stand in for the routers'; everything else is a whole training step.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import JsonValue
from rich.console import Console

from hecate.bench.contest import Contest
from hecate.bench.crew import Crew, crew_of, usable_cores
from hecate.bench.margins import Course, Standing, rows_of, slowest, summarise
from hecate.bench.peers import Job
from hecate.bench.recorded_loads import Recording
from hecate.bench.replay import counted
from hecate.bench.report import BenchOptions, Report
from hecate.bench.routing_traces import PERIOD, Trace, recorded_trace, synthetic_traces
from hecate.bench.strategies import CEILING, OURS, POLICY_NAMES, imbalance_of
from hecate.bench.worker import do_tasks
from hecate.bench.workloads import (
    DEMO,
    TWO_RANKS,
    Workload,
    write_batches,
    write_weights,
)
from hecate.data import DataConfig
from hecate.data.progress import progress_bars
from hecate.planner.load import Counts
from hecate.train.optim import OptimizerConfig

SEED = 1
OPTIMIZER = OptimizerConfig(learning_rate=5e-4)
RECORDED_OPTIMIZER = OptimizerConfig(learning_rate=1.5e-3)  # the demo's
NUM_BATCHES = 8  # different rows, again and again

HALF = replace(DEMO, name="moe 0.5", sizes={**DEMO.sizes, "moe_intermediate_size": 384})
MOST = replace(DEMO, name="moe 0.8", sizes={**DEMO.sizes, "moe_intermediate_size": 1536})

TITLES = {
    OURS: "fssdp (ours)",
    "expert_parallel": "expert parallel",
    "shadowing": "shadowing",
    "swapping": "swapping",
    "replication": "replication",
    "fsdp": "fsdp of experts",
    CEILING: "even choices (ceiling)",
}
COLUMNS = {
    "model": "model",
    "trace": "trace",
    "strategy": "strategy",
    "ms": "ms/step",
    "ceiling_share": "of ceiling",
    "ours_over_it": "ours / it",
    "ours_over_it_quartiles": "quartiles",
    "imbalance_given": "imbalance given",
    "imbalance": "computed",
    "copies": "copies/step",
    "slot_mib": "slots MiB",
    "status": "status",
}


@dataclass(frozen=True)
class Pace:
    """How long to measure. Decisions of ``skipped`` steps are taken without their training.

    ``stable_rounds``: single steps of a row whose loads stay; ``moving_rounds``: periods of the
    others. ``row_s``: a row goes on until then where it has its rounds already. ``recorded``: steps
    of the run whose loads are recorded.
    """

    skipped: int
    warm_up: int
    stable_rounds: int
    moving_rounds: int
    row_s: float
    most_rounds: int
    recorded: int


QUICK = Pace(
    skipped=50, warm_up=2, stable_rounds=8, moving_rounds=2, row_s=25, most_rounds=2, recorded=80
)
WHOLE = Pace(
    skipped=50, warm_up=3, stable_rounds=20, moving_rounds=4, row_s=120, most_rounds=6, recorded=200
)


@dataclass(frozen=True)
class Setting:
    """What the benchmark runs: models, the traces of each, and who takes part."""

    models: Mapping[str, Workload]
    traces: Mapping[str, tuple[str, ...]]
    recorded: Workload
    names: tuple[str, ...]
    dtype: str
    data: DataConfig = DataConfig()


def bench_fssdp(options: BenchOptions) -> Report:
    """Both models under all traces. Raises ``ContenderError`` when a rank fails."""
    console = Console(stderr=True)
    pace = QUICK if options.quick else WHOLE
    every = ("balanced", "hot_1.5", "hot_1.9", "rotating", "burst", "one_hot", "idle", "real")
    few = ("balanced", "hot_1.9", "rotating") if options.quick else every
    setting = Setting(
        models={HALF.name: HALF, MOST.name: MOST},
        traces={HALF.name: every, MOST.name: few},
        recorded=DEMO,
        names=POLICY_NAMES,
        dtype=options.dtype,
    )
    standings = measure(setting, pace, console=console)
    return report_of(standings, setting, pace)


def measure(setting: Setting, pace: Pace, *, console: Console) -> list[Standing]:
    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    standings: list[Standing] = []
    with tempfile.TemporaryDirectory(prefix="hecate-bench-") as temporary:
        folder = Path(temporary)
        with crew_of(
            "fssdp",
            do_tasks,
            TWO_RANKS,
            cores=usable_cores(),
            folder=folder,
            timeout_s=300,
            seed=SEED,
            keep_freed_memory=True,
        ) as crew:
            jobs = _Jobs(setting, folder, console)
            recorded_SYE = record(crew, jobs, setting, pace, say)
            for name, workload in setting.models.items():
                for trace_name in setting.traces[name]:
                    started = time.monotonic()
                    trace = trace_of(trace_name, workload, recorded_SYE)
                    standing = contest(crew, jobs, workload, trace, setting, pace)
                    standings.append(standing)
                    say(
                        f"{name} {trace_name}: {time.monotonic() - started:.0f} s; "
                        + briefly(standing)
                    )
    return standings


def briefly(standing: Standing) -> str:
    rows = rows_of(standing, TITLES, ours=OURS, ceiling=CEILING)
    return ", ".join(
        f"{row['strategy']} {row['ms']:.0f} ms ({row['ceiling_share']:.3f})" for row in rows
    )


class _Jobs:
    """Training jobs of the workloads, whose batches and weights are written when first needed."""

    def __init__(self, setting: Setting, folder: Path, console: Console) -> None:
        self._setting, self._folder, self._console = setting, folder, console

    def of(self, workload: Workload, steps: int, optimizer: OptimizerConfig) -> Job:
        folder = self._folder / f"{workload.name}-{workload.sizes['num_experts_per_tok']}-{steps}"
        if not folder.exists():
            folder.mkdir()
            with progress_bars(self._console) as progress:
                write_batches(
                    workload,
                    steps,
                    data=self._setting.data,
                    seed=SEED,
                    folder=folder,
                    progress=progress,
                )
            write_weights(workload, seed=SEED, folder=folder)
        return Job(
            workload=workload,
            layout=TWO_RANKS,
            steps=steps,
            dtype=self._setting.dtype,
            seed=SEED,
            batches=folder / f"{workload.name}-batches.safetensors",
            weights=folder / f"{workload.name}-weights.safetensors",
            optimizer=optimizer,
        )


def record(crew: Crew, jobs: _Jobs, setting: Setting, pace: Pace, say: object) -> Counts:
    job = jobs.of(setting.recorded, pace.recorded, RECORDED_OPTIMIZER)
    counts: Counts = crew.do(Recording(job), timeout_s=900)[0]  # type: ignore[assignment]
    return counts


def trace_of(name: str, workload: Workload, recorded_SYE: Counts) -> Trace:
    num_experts = int(str(workload.sizes["num_experts"]))
    top_k = int(str(workload.sizes["num_experts_per_tok"]))
    traces = (
        *synthetic_traces(num_experts, TWO_RANKS.world_size, top_k),
        recorded_trace("real", recorded_SYE, top_k),
    )
    return next(trace for trace in traces if trace.name == name)


def contest(
    crew: Crew, jobs: _Jobs, workload: Workload, trace: Trace, setting: Setting, pace: Pace
) -> Standing:
    workload = replace(workload, sizes={**workload.sizes, "num_experts_per_tok": trace.top_k})
    rounds, round_steps = pace.stable_rounds, 1
    if not trace.stable and trace.name != "one_hot":
        rounds, round_steps = pace.moving_rounds, PERIOD
    first = pace.skipped + PERIOD
    counts_SYE = counted(
        trace.shares,
        steps=first + pace.most_rounds * max(rounds * round_steps, PERIOD),
        layers=int(str(workload.sizes["num_hidden_layers"])),
        num_tokens=workload.tokens_per_step // TWO_RANKS.world_size,
        top_k=trace.top_k,
    )
    task = Contest(
        jobs.of(workload, NUM_BATCHES, OPTIMIZER),
        setting.names,
        counts_SYE,
        first_step=first,
        warm_up=pace.warm_up,
        round_steps=round_steps,
        least_rounds=rounds,
        budget_s=pace.row_s,
    )
    ranks: list[dict[str, Course]] = crew.do(task, timeout_s=1800)  # type: ignore[assignment]
    given = np.mean([imbalance_of(c, TWO_RANKS.world_size) for c in counts_SYE[first:]])
    return Standing(
        workload.name,
        trace.name,
        trace.stable,
        round_steps,
        float(given),
        {name: slowest([rank[name] for rank in ranks]) for name in setting.names},
    )


def report_of(standings: Sequence[Standing], setting: Setting, pace: Pace) -> Report:
    rows = [
        row
        for standing in standings
        for row in rows_of(standing, TITLES, ours=OURS, ceiling=CEILING)
    ]
    first = next(iter(setting.models))
    settings: dict[str, JsonValue] = {"dtype": setting.dtype, "seed": SEED}
    return Report(
        "fssdp",
        settings,
        COLUMNS,
        tuple(rows),
        summarise(standings, model=first, ours=OURS, ceiling=CEILING),
        (),
    )
