"""``hecate bench simulator``: what the simulator says of runs that it has not seen, beside them.

Each row is training on two ranks here, timed, and the same steps on the simulator, whose constants
are micro-benchmarks' of the same shapes, taken before and after. Nothing is fitted to any run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from pydantic import JsonValue
from rich.console import Console

from hecate.bench.contest import Contest
from hecate.bench.crew import Crew, crew_of, usable_cores
from hecate.bench.margins import Course, round_seconds, slowest
from hecate.bench.micro import MicroBenchmarks
from hecate.bench.peers import Job
from hecate.bench.replay import counted
from hecate.bench.report import BenchOptions, Report, Row
from hecate.bench.routing_traces import PERIOD, Trace, synthetic_traces
from hecate.bench.worker import do_tasks
from hecate.bench.workloads import DEMO, TWO_RANKS, Workload, write_batches
from hecate.data import DataConfig
from hecate.data.progress import progress_bars
from hecate.planner.load import Counts
from hecate.simulate.measured import Measurements, Sizes, mean_of
from hecate.simulate.measured_run import simulate_steps
from hecate.simulate.step import StepTime
from hecate.simulate.strategies import STRATEGIES
from hecate.train.optim import OptimizerConfig

SEED = 1
WITHIN = 0.15
NUM_BATCHES = 8
WARM_UP = 2
FIRST_STEP = 2 * PERIOD  # a period begins with it; owners have been looked at before
TIMEOUT_S = 600.0
BASELINE = "expert_parallel"
COLUMNS = {
    "model": "model",
    "tokens_per_rank": "tokens/rank",
    "trace": "trace",
    "policy": "policy",
    "measured_ms": "measured ms",
    "simulated_ms": "simulated ms",
    "error": "error",
    "within": "within 15 %",
}


def _model(name: str, *, hidden: int, width: int, experts: int, layers: int, rows: int) -> Workload:
    sizes = {
        **DEMO.sizes,
        "hidden_size": hidden,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 128,
        "num_hidden_layers": layers,
        "num_experts": experts,
        "moe_intermediate_size": width,
    }
    return replace(DEMO, name=name, sizes=sizes, vocab_size=1024, batch_sequences=rows)


@dataclass(frozen=True)
class Scene:
    """One model under one trace: a run for each of ``policies``, of ``rounds`` timed rounds."""

    work: Workload
    trace: str
    policies: tuple[str, ...]
    rounds: int


HALF = _model("d256 f368", hidden=256, width=368, experts=16, layers=4, rows=16)
WIDE = _model("d256 f1344", hidden=256, width=1344, experts=16, layers=4, rows=8)
SHORT = _model("d384 f512", hidden=384, width=512, experts=8, layers=5, rows=4)

ALL = (BASELINE, "fssdp", "shadowing", "swapping", "replication", "fsdp", "force_balanced")
FEW = (BASELINE, "fssdp", "shadowing", "fsdp")
MOVING = (BASELINE, "fssdp", "swapping", "replication")


@dataclass(frozen=True)
class Setting:
    """``repeats``: of each micro-benchmark before a scene, and after it again."""

    scenes: tuple[Scene, ...]
    repeats: int
    data: DataConfig = DataConfig()


QUICK = Setting(
    (
        Scene(HALF, "hot_1.9", FEW, 4),
        Scene(WIDE, "hot_1.5", FEW, 4),
        Scene(WIDE, "one_hot", (BASELINE, "shadowing"), 4),
        Scene(SHORT, "rotating", MOVING, 1),
    ),
    repeats=3,
)
WHOLE = Setting(
    (
        Scene(HALF, "hot_1.9", ALL, 7),
        Scene(HALF, "burst", MOVING, 1),
        Scene(WIDE, "balanced", FEW, 7),
        Scene(WIDE, "hot_1.5", ALL, 7),
        Scene(WIDE, "one_hot", FEW, 7),
        Scene(SHORT, "hot_1.9", ALL, 15),
        Scene(SHORT, "rotating", MOVING, 3),
    ),
    repeats=5,
)


def bench_simulator(options: BenchOptions) -> Report:
    """Measure, simulate, compare. Raises ``ContenderError`` when a rank fails."""
    load = os.getloadavg()[0]
    setting = QUICK if options.quick else WHOLE
    return compare(setting, Console(stderr=True), load_before=load)


def compare(setting: Setting, console: Console, *, load_before: float) -> Report:
    """Everything on one pair of ranks; they are gone at the end."""
    with tempfile.TemporaryDirectory(prefix="hecate-bench-") as temporary:
        folder = Path(temporary)
        with crew_of(
            "simulator",
            do_tasks,
            TWO_RANKS,
            cores=usable_cores(),
            folder=folder,
            timeout_s=300,
            seed=SEED,
            keep_freed_memory=True,
        ) as crew:
            runs = _Runs(crew, setting, folder, console)
            rows = [run.row() for scene in setting.scenes for run in runs.of(scene)]
    return _report(setting, rows, runs.micro, load_before)


@dataclass(frozen=True)
class Run:
    """One policy in one scene: seconds of a step, as timed and as simulated."""

    scene: Scene
    policy: str
    measured_s: float
    simulated_s: float
    charged_ms: dict[str, float]

    def row(self) -> Row:
        error = self.simulated_s / self.measured_s - 1
        work = self.scene.work
        return {
            "model": work.name,
            "tokens_per_rank": work.tokens_per_step // TWO_RANKS.world_size,
            "trace": self.scene.trace,
            "policy": self.policy,
            "measured_ms": 1e3 * self.measured_s,
            "simulated_ms": 1e3 * self.simulated_s,
            "error": error,
            "within": abs(error) <= WITHIN,
            "simulated_parts_ms": dict(self.charged_ms),
        }


class _Runs:
    """Scenes, and micro-benchmarks of their models around each, on the ranks of ``crew``."""

    def __init__(self, crew: Crew, setting: Setting, folder: Path, console: Console) -> None:
        self._crew, self._setting = crew, setting
        self._folder, self._console = folder, console
        self.micro: dict[str, Measurements] = {}

    def of(self, scene: Scene) -> list[Run]:
        """Predicted from micro-benchmarks, and then run."""
        work = scene.work
        trace = _trace(scene)
        work = replace(work, sizes={**work.sizes, "num_experts_per_tok": trace.top_k})
        job = self._job(work)
        round_steps = PERIOD if trace.moves else 1
        timed = range(FIRST_STEP, FIRST_STEP + scene.rounds * round_steps)
        counts_SYE = counted(
            trace.shares,
            steps=timed.stop,
            layers=work.num_layers,
            num_tokens=work.tokens_per_step // TWO_RANKS.world_size,
            top_k=trace.top_k,
        )
        before = self._measured(job)
        courses = self._courses(scene, job, counts_SYE, round_steps)
        measured = mean_of([before, self._measured(job)])
        self.micro[f"{work.name}, {scene.trace}"] = measured
        runs = []
        for policy, course in courses.items():
            steps = simulate_steps(measured, sizes_of(work), STRATEGIES[policy], counts_SYE, timed)
            simulated = Course(tuple(timed), tuple(step.step_s for step in steps))
            runs.append(
                Run(
                    scene,
                    policy,
                    median(round_seconds(course, round_steps)),
                    median(round_seconds(simulated, round_steps)),
                    _charged_ms(steps),
                )
            )
        self._tell(runs)
        return runs

    def _measured(self, job: Job) -> Measurements:
        task = MicroBenchmarks(job, self._setting.repeats)
        return self._crew.do(task, timeout_s=TIMEOUT_S)[0]

    def _courses(
        self, scene: Scene, job: Job, counts_SYE: Counts, round_steps: int
    ) -> dict[str, Course]:
        contest = Contest(
            job,
            scene.policies,
            counts_SYE,
            first_step=FIRST_STEP,
            warm_up=WARM_UP,
            round_steps=round_steps,
            rounds=scene.rounds,
            peers_every=1,
        )
        ranks = self._crew.do(contest, timeout_s=TIMEOUT_S)
        return {name: slowest([rank[name] for rank in ranks]) for name in scene.policies}

    def _job(self, work: Workload) -> Job:
        folder = self._folder / f"{work.name}-{work.top_k}".replace(" ", "-")
        path = folder / f"{work.name}-batches.safetensors"
        if not folder.exists():
            folder.mkdir()
            with progress_bars(self._console) as progress:
                write_batches(
                    work,
                    NUM_BATCHES,
                    data=self._setting.data,
                    seed=SEED,
                    folder=folder,
                    progress=progress,
                )
        return Job(
            workload=work,
            layout=TWO_RANKS,
            steps=NUM_BATCHES,
            dtype="float32",
            seed=SEED,
            batches=path,
            weights=folder / "none",  # ours begins from the seed
            optimizer=OptimizerConfig(learning_rate=5e-4),
        )

    def _tell(self, runs: Sequence[Run]) -> None:
        scene = runs[0].scene
        times = ", ".join(
            f"{run.policy} {1e3 * run.measured_s:.0f} ms ({1e3 * run.simulated_s:.0f} simulated)"
            for run in runs
        )
        self._console.print(
            f"{scene.work.name} {scene.trace}: {times}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _charged_ms(steps: Sequence[StepTime]) -> dict[str, float]:
    """What a mean step of a mean rank was spent on."""
    parts = {name for step in steps for name in step.charged_s}
    return {
        name: 1e3 * sum(step.charged_s.get(name, 0.0) for step in steps) / len(steps)
        for name in sorted(parts)
    }


def _trace(scene: Scene) -> Trace:
    traces = synthetic_traces(scene.work.num_experts, TWO_RANKS.world_size, scene.work.top_k)
    return next(trace for trace in traces if trace.name == scene.trace)


def sizes_of(work: Workload) -> Sizes:
    """What a step of ``work`` multiplies measurements with."""
    hidden, width = (
        int(str(work.sizes[name])) for name in ("hidden_size", "moe_intermediate_size")
    )
    heads, kv_heads, head_dim = (
        int(str(work.sizes[name]))
        for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    layer = attention + work.num_experts * hidden + 2 * hidden + 2 * head_dim
    return Sizes(
        layers=work.num_layers,
        experts=work.num_experts,
        hidden_size=hidden,
        expert_parameters=3 * hidden * width,
        dense_parameters=work.num_layers * layer + (work.vocab_size + 1) * hidden,
        ranks=TWO_RANKS.world_size,
    )


def _report(
    setting: Setting,
    rows: Sequence[Row],
    micro: dict[str, Measurements],
    load_before: float,
) -> Report:
    errors = [abs(float(str(row["error"]))) for row in rows]
    summary: dict[str, float] = {
        "runs": len(rows),
        "worst_error": max(errors),
        "median_error": median(errors),
        "within_15_percent": sum(bool(row["within"]) for row in rows),
    }
    notes = [
        "simulated ms are simulated: from micro-benchmarks of the same shapes on the same ranks, "
        "before and after the runs; none of them is a step with experts, and nothing is fitted",
        "ms: medians over rounds; a round is a step, or a mean step of a period of "
        f"{PERIOD} where loads move. error: simulated over measured, less 1",
    ]
    if load_before > 1:
        notes.append(f"the machine was busy before this began (load average {load_before:.1f})")
    settings: dict[str, JsonValue] = {
        "seed": SEED,
        "repeats": setting.repeats,
        "models": {scene.work.name: dict(scene.work.sizes) for scene in setting.scenes},
        "micro": {name: _shown(measured) for name, measured in micro.items()},
    }
    return Report("simulator", settings, COLUMNS, tuple(rows), summary, tuple(notes))


def _shown(measured: Measurements) -> dict[str, JsonValue]:
    """Every constant as text, for the JSON."""
    return {name: str(value) for name, value in vars(measured).items()}
