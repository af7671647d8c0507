"""The stages of the experts' benchmark, one after another on the same pair of ranks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from rich.console import Console

from hecate.bench.contest import Contest
from hecate.bench.copies import (
    GATHERED,
    KEPT,
    REMATERIALIZED,
    SKIPPED,
    HiddenGather,
    Rematerialization,
)
from hecate.bench.crew import Crew
from hecate.bench.margins import (
    Course,
    Standing,
    hidden_fraction,
    rows_of,
    slowest,
    speed_ratios,
)
from hecate.bench.peers import Implementations, Job
from hecate.bench.recorded_loads import Recording
from hecate.bench.replay import counted
from hecate.bench.routing_traces import PERIOD, Trace, recorded_trace, synthetic_traces
from hecate.bench.sparse_gather import SparseGather
from hecate.bench.strategies import (
    CEILING,
    DEEPSPEED,
    FSDP2,
    OURS,
    WITHOUT_EXPERTS,
    FastestImplementations,
    imbalance_of,
    missing,
)
from hecate.bench.worker import Task
from hecate.bench.workloads import DEMO, TWO_RANKS, Workload, write_batches, write_weights
from hecate.data import DataConfig
from hecate.data.progress import progress_bars
from hecate.planner.load import Counts
from hecate.train.optim import OptimizerConfig

SEED = 1
OPTIMIZER = OptimizerConfig(learning_rate=5e-4)
RECORDED_OPTIMIZER = OptimizerConfig(learning_rate=1.5e-3)  # the demo's
NUM_BATCHES = 8  # different rows, again and again
TASK_TIMEOUT_S = 1800.0

# The experts' widths at which they take 0.50 and 0.8 of a balanced step here.
HALF = replace(DEMO, name="moe 0.5", sizes={**DEMO.sizes, "moe_intermediate_size": 448})
MOST = replace(DEMO, name="moe 0.8", sizes={**DEMO.sizes, "moe_intermediate_size": 1536})

TITLES = {
    OURS: "fssdp (ours)",
    "expert_parallel": "expert parallel",
    "shadowing": "shadowing",
    "swapping": "swapping",
    "replication": "replication",
    "fsdp": "fsdp of experts",
    DEEPSPEED: "DeepSpeed MoE",
    FSDP2: "transformers + FSDP2",
    CEILING: "even choices (ceiling)",
}

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Pace:
    """How long to measure. Decisions of ``skipped`` steps are taken without their training.

    ``stable_rounds``: single steps of a row whose loads stay; ``moving_rounds``: periods of the
    others. A row goes on to ``most_rounds`` times as many while it is younger than ``row_s``.
    ``recorded``: steps of the run whose loads are recorded. ``repeats``: of the measurements of
    copies and, times ten, of bare gathers.
    """

    skipped: int
    warm_up: int
    stable_rounds: int
    moving_rounds: int
    row_s: float
    most_rounds: int
    recorded: int
    peers_every: int
    repeats: int


QUICK = Pace(
    skipped=50,
    warm_up=1,
    stable_rounds=3,
    moving_rounds=1,
    row_s=10,
    most_rounds=2,
    recorded=70,
    peers_every=5,
    repeats=6,
)
WHOLE = Pace(
    skipped=50,
    warm_up=2,
    stable_rounds=12,
    moving_rounds=2,
    row_s=110,
    most_rounds=3,
    recorded=200,
    peers_every=3,
    repeats=20,
)


@dataclass(frozen=True)
class Setting:
    """Models, the traces of each, and who takes part. ``recorded``: the model of the real loads."""

    models: tuple[Workload, ...]
    traces: Mapping[str, tuple[str, ...]]
    recorded: Workload
    names: tuple[str, ...]
    dtype: str
    data: DataConfig = DataConfig()
    chunk_bytes: tuple[int, ...] = (1 << 20, 4 << 20)


@dataclass
class Found:
    """Everything that was measured. ``sparse_gathers``: by chunk bytes, kind and way."""

    standings: list[Standing] = field(default_factory=list)
    sparse_gathers: dict[int, dict[str, dict[str, tuple[float, ...]]]] = field(default_factory=dict)
    hidden_fraction: float = 0.0
    hidden_ms: dict[str, float] = field(default_factory=dict)
    remat_slowdown: float = 0.0
    remat_extra_layers: float = 0.0
    remat_ms: dict[str, float] = field(default_factory=dict)
    peer_settings: dict[str, str] = field(default_factory=dict)


class Stages:
    """Runs the stages of ``setting`` on the ranks of ``crew``."""

    def __init__(
        self, crew: Crew, setting: Setting, pace: Pace, folder: Path, console: Console
    ) -> None:
        self._crew, self._setting, self._pace = crew, setting, pace
        self._folder, self._console = folder, console
        self._implementations: Implementations | None = None
        self._found = Found()

    def run(self) -> Found:
        setting, first = self._setting, self._setting.models[0]
        self._sparse_gathers()
        self._copies(first)
        if FSDP2 in setting.names:
            self._choose_implementations(first)
        recorded_SYE: Counts = self._do(
            Recording(self._job(setting.recorded, self._pace.recorded, RECORDED_OPTIMIZER))
        )[0]
        self._say(f"recorded the loads of {len(recorded_SYE)} steps")
        for work in setting.models:
            for number, name in enumerate(setting.traces[work.name]):
                trace = trace_named(name, work, recorded_SYE)
                self._contest(work, trace, with_share=number == 0)
        return self._found

    def _sparse_gathers(self) -> None:
        for chunk_bytes in self._setting.chunk_bytes:
            ranks = self._do(SparseGather(chunk_bytes, 10 * self._pace.repeats))
            self._found.sparse_gathers[chunk_bytes] = {
                kind: {
                    way: tuple(map(max, zip(*(rank[kind][way] for rank in ranks), strict=True)))
                    for way in ways
                }
                for kind, ways in ranks[0].items()
            }
        self._say("gathered sparse and dense")

    def _copies(self, work: Workload) -> None:
        """Gathers hidden or shown, copies kept or gathered again, with a quarter of all experts."""
        hot = trace_named(
            "hot_1.9", work, np.ones((1, work.num_layers, work.num_experts), dtype=np.int64)
        )
        counts_YE = self._counts(work, hot, 1)[0]
        job = self._job(work, NUM_BATCHES, OPTIMIZER)
        quarter, repeats = max(1, work.num_experts // 4), self._pace.repeats
        self._hidden(HiddenGather(job, counts_YE, quarter, repeats))
        self._rematerialized(Rematerialization(job, counts_YE, quarter, repeats))
        self._say(
            f"gathers hidden {self._found.hidden_fraction:.2f}, "
            f"made again {self._found.remat_slowdown:+.3f}"
        )

    def _hidden(self, task: HiddenGather) -> None:
        ranks = self._do(task)
        steps = _over_ranks([courses for courses, _ in ranks])
        alone_s = [max(seconds) for seconds in zip(*(alone for _, alone in ranks), strict=True)]
        step_s, skipped_s = steps[GATHERED].seconds, steps[SKIPPED].seconds
        self._found.hidden_fraction = hidden_fraction(step_s, skipped_s, alone_s)
        self._found.hidden_ms = {
            "step": 1e3 * median(step_s),
            "step without its gathers": 1e3 * median(skipped_s),
            "gathers alone": 1e3 * median(alone_s),
        }

    def _rematerialized(self, task: Rematerialization) -> None:
        ranks = self._do(task)
        steps = _over_ranks([courses for courses, _ in ranks])
        ratios = speed_ratios(steps[REMATERIALIZED], steps[KEPT], 1)
        self._found.remat_slowdown = 1 / median(ratios) - 1
        self._found.remat_extra_layers = max(extra for _, extra in ranks)
        self._found.remat_ms = {name: 1e3 * median(c.seconds) for name, c in steps.items()}

    def _choose_implementations(self, work: Workload) -> None:
        """What transformers runs fastest here, on the first model's own rows."""
        job = self._job(work, NUM_BATCHES, OPTIMIZER)
        chosen, tried = self._do(FastestImplementations(job))[0]
        self._implementations = chosen
        self._found.peer_settings = {
            "attention": chosen.attention,
            "experts": chosen.experts,
            "tried": tried,
        }
        self._say(f"transformers runs {chosen.attention} and {chosen.experts} ({tried})")

    def _contest(self, work: Workload, trace: Trace, *, with_share: bool) -> None:
        started, pace = time.monotonic(), self._pace
        work = replace(work, sizes={**work.sizes, "num_experts_per_tok": trace.top_k})
        rounds, round_steps = pace.stable_rounds, 1
        if trace.moves:
            rounds, round_steps = pace.moving_rounds, PERIOD
        first = pace.skipped + PERIOD
        counts_SYE = self._counts(work, trace, first + pace.most_rounds * rounds * round_steps)
        absent = {name: missing(name) for name in self._setting.names if missing(name)}
        names = tuple(name for name in self._setting.names if name not in absent)
        ranks = self._do(
            Contest(
                self._job(work, NUM_BATCHES, OPTIMIZER),
                (*names, *((WITHOUT_EXPERTS,) if with_share else ())),
                counts_SYE,
                first_step=first,
                warm_up=pace.warm_up,
                round_steps=round_steps,
                least_rounds=rounds,
                budget_s=pace.row_s,
                peers_every=pace.peers_every,
            )
        )
        courses = _over_ranks(ranks)
        share = 0.0
        if with_share:
            share = 1 - median(speed_ratios(courses[CEILING], courses.pop(WITHOUT_EXPERTS), 1))
        steps = courses[CEILING].steps
        standing = Standing(
            work.name,
            trace.name,
            trace.stable,
            round_steps,
            float(np.mean([imbalance_of(counts_SYE[s], TWO_RANKS.world_size) for s in steps])),
            {**courses, **{name: Course(problem=problem) for name, problem in absent.items()}},
            share,
        )
        self._found.standings.append(standing)
        self._tell(standing, time.monotonic() - started)

    def _counts(self, work: Workload, trace: Trace, steps: int) -> Counts:
        return counted(
            trace.shares,
            steps=steps,
            layers=work.num_layers,
            num_tokens=work.tokens_per_step // TWO_RANKS.world_size,
            top_k=trace.top_k,
        )

    def _job(self, work: Workload, steps: int, optimizer: OptimizerConfig) -> Job:
        """Its batches and weights are written when they are first needed."""
        folder = self._folder / f"{work.name}-{work.top_k}-{steps}"
        if not folder.exists():
            folder.mkdir()
            data = self._setting.data
            with progress_bars(self._console) as progress:
                write_batches(work, steps, data=data, seed=SEED, folder=folder, progress=progress)
            write_weights(work, seed=SEED, folder=folder)
        return Job(
            workload=work,
            layout=TWO_RANKS,
            steps=steps,
            dtype=self._setting.dtype,
            seed=SEED,
            batches=folder / f"{work.name}-batches.safetensors",
            weights=folder / f"{work.name}-weights.safetensors",
            optimizer=optimizer,
            implementations=self._implementations,
        )

    def _do(self, task: Task[Answer]) -> list[Answer]:
        return self._crew.do(task, timeout_s=TASK_TIMEOUT_S)

    def _tell(self, standing: Standing, seconds: float) -> None:
        rows = rows_of(standing, TITLES, ours=OURS, ceiling=CEILING)
        times = ", ".join(f"{row['strategy']} {row['ms']:.0f} ms" for row in rows if "ms" in row)
        self._say(f"{standing.model} {standing.trace} in {seconds:.0f} s: {times}")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def trace_named(name: str, work: Workload, recorded_SYE: Counts) -> Trace:
    """A trace for ``work`` over two ranks; ``real`` is the recorded one."""
    traces = (
        *synthetic_traces(work.num_experts, TWO_RANKS.world_size, work.top_k),
        recorded_trace("real", recorded_SYE, work.top_k),
    )
    return next(trace for trace in traces if trace.name == name)


def _over_ranks(ranks: Sequence[Mapping[str, Course]]) -> dict[str, Course]:
    return {name: slowest([rank[name] for rank in ranks]) for name in ranks[0]}
