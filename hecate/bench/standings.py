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
    spread,
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
    PEERS,
    VARIANTS,
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


def _demo_with(name: str, moe_intermediate_size: int) -> Workload:
    """The demo's model with wider experts, and a head that weighs as little as in large models."""
    sizes = {**DEMO.sizes, "moe_intermediate_size": moe_intermediate_size}
    return replace(DEMO, name=name, sizes=sizes, vocab_size=1024)


# The experts' widths at which they take 0.50 to 0.55, and 0.8, of a balanced step here.
HALF, MOST = _demo_with("moe 0.5", 384), _demo_with("moe 0.8", 1280)

TITLES = {
    OURS: "fssdp (ours)",
    "expert_parallel": "expert parallel",
    "shadowing": "shadowing",
    "swapping": "swapping",
    "replication": "replication",
    "fsdp": "fsdp of experts",
    DEEPSPEED: "DeepSpeed MoE",
    FSDP2: "transformers + FSDP2",
    "fssdp_paper": "fssdp, the paper's copies",
    "fssdp_even": "fssdp, even dispatch",
    "fssdp_planned": "fssdp, no late copies",
    CEILING: "even choices (ceiling)",
}

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Part:
    """A model under some traces, and who takes part.

    ``stable_rounds``: single steps of a row whose loads stay; ``moving_rounds``: periods of the
    others. Outside peers take every ``peers_every``-th round of the rows in ``peer_traces``. Ours
    with other rules takes part in ``variant_traces``.
    """

    work: Workload
    traces: tuple[str, ...]
    names: tuple[str, ...]
    peer_traces: tuple[str, ...]
    stable_rounds: int
    moving_rounds: int
    peers_every: int
    variant_traces: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What is measured; the summary comes from the first of ``parts``.

    ``recorded``: the model whose routers' loads are recorded. ``skipped``: steps of every trace
    whose decisions are taken without their training; ``warm_up`` more are not timed. ``repeats``:
    of steps that gather copies once or twice; twice as many of steps with gathers and without, and
    five times of bare gathers.
    """

    parts: tuple[Part, ...]
    recorded: Workload
    skipped: int
    warm_up: int
    repeats: int
    dtype: str
    data: DataConfig = DataConfig()
    chunk_bytes: tuple[int, ...] = (1 << 20, 4 << 20)

    @property
    def first_step(self) -> int:
        """The first timed step; a period begins with it."""
        return self.skipped + PERIOD

    @property
    def recorded_steps(self) -> int:
        """Enough for every part's periods."""
        return self.first_step + PERIOD * max(part.moving_rounds for part in self.parts)


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

    def __init__(self, crew: Crew, setting: Setting, folder: Path, console: Console) -> None:
        self._crew, self._setting = crew, setting
        self._folder, self._console = folder, console
        self._implementations: Implementations | None = None
        self._found = Found()

    def run(self) -> Found:
        setting, first = self._setting, self._setting.parts[0]
        self._sparse_gathers()
        self._copies(first.work)
        if FSDP2 in first.names:
            self._choose_implementations(first.work)
        recording = self._job(setting.recorded, setting.recorded_steps, RECORDED_OPTIMIZER)
        recorded_SYE: Counts = self._do(Recording(recording))[0]
        self._say(f"recorded the loads of {len(recorded_SYE)} steps")
        for part in setting.parts:
            for number, name in enumerate(part.traces):
                self._contest(part, name, recorded_SYE, with_share=number == 0)
        return self._found

    def _sparse_gathers(self) -> None:
        for chunk_bytes in self._setting.chunk_bytes:
            ranks = self._do(SparseGather(chunk_bytes, 5 * self._setting.repeats))
            self._found.sparse_gathers[chunk_bytes] = {
                kind: {
                    way: tuple(map(max, zip(*(rank[kind][way] for rank in ranks), strict=True)))
                    for way in ways
                }
                for kind, ways in ranks[0].items()
            }
        self._say("gathered sparse and dense")

    def _copies(self, work: Workload) -> None:
        """Gathers hidden or shown, with every expert everywhere, which is the most there can be.

        Copies kept or gathered again, with a quarter of all experts: what ``hot_1.9`` calls for.
        """
        hot = trace_named(
            "hot_1.9", work, np.ones((1, work.num_layers, work.num_experts), dtype=np.int64)
        )
        counts_YE = self._counts(work, hot, 1)[0]
        job, repeats = self._job(work, NUM_BATCHES, OPTIMIZER), self._setting.repeats
        self._hidden(HiddenGather(job, counts_YE, work.num_experts, 2 * repeats))
        quarter = max(1, work.num_experts // 4)
        self._rematerialized(Rematerialization(job, counts_YE, quarter, repeats))
        self._say(
            f"gathers hidden {self._found.hidden_fraction:.2f}, "
            f"made again {self._found.remat_slowdown:+.3f}"
        )

    def _hidden(self, task: HiddenGather) -> None:
        ranks = self._do(task)
        steps = _over_ranks([courses for courses, _ in ranks])
        repeats = list(zip(*(alone for _, alone in ranks), strict=True))
        alone_s = [max(each.seconds for each in ranks) for ranks in repeats]
        busy_s = [max(each.busy_s for each in ranks) for ranks in repeats]
        step_s, skipped_s = steps[GATHERED].seconds, steps[SKIPPED].seconds
        self._found.hidden_fraction = hidden_fraction(step_s, skipped_s, alone_s)
        low_s, high_s = spread([a - b for a, b in zip(step_s, skipped_s, strict=True)])
        self._found.hidden_ms = {
            "step": 1e3 * median(step_s),
            "step without its gathers": 1e3 * median(skipped_s),
            "lower quartile of the difference": 1e3 * low_s,
            "upper quartile": 1e3 * high_s,
            "gathers alone": 1e3 * median(alone_s),
            "the core busy in these": 1e3 * median(busy_s),
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

    def _contest(
        self, part: Part, trace_name: str, recorded_SYE: Counts, *, with_share: bool
    ) -> None:
        """One row of every strategy; ``with_share``: the part that experts take of a step too."""
        started = time.monotonic()
        trace = trace_named(trace_name, part.work, recorded_SYE)
        work = replace(part.work, sizes={**part.work.sizes, "num_experts_per_tok": trace.top_k})
        first = self._setting.first_step
        round_steps, rounds = 1, part.stable_rounds
        if trace.moves:
            round_steps, rounds = PERIOD, part.moving_rounds
        counts_SYE = self._counts(work, trace, first + rounds * round_steps)
        names = tuple(n for n in part.names if n not in PEERS or trace_name in part.peer_traces)
        names += tuple(VARIANTS) if trace_name in part.variant_traces else ()
        absent = {name: missing(name) for name in names if missing(name)}
        present = tuple(name for name in names if name not in absent)
        ranks = self._do(
            Contest(
                self._job(work, NUM_BATCHES, OPTIMIZER),
                (*present, *((WITHOUT_EXPERTS,) if with_share else ())),
                counts_SYE,
                first_step=first,
                warm_up=self._setting.warm_up,
                round_steps=round_steps,
                rounds=rounds,
                peers_every=part.peers_every,
            )
        )
        courses = _over_ranks(ranks)
        share = 0.0
        if with_share:
            share = 1 - median(speed_ratios(courses[CEILING], courses.pop(WITHOUT_EXPERTS), 1))
        standing = Standing(
            work.name,
            trace.name,
            trace.stable,
            round_steps,
            imbalance_of(counts_SYE[first:], TWO_RANKS.world_size),
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
