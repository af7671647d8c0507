"""``hecate bench curves``: training under every policy beside a single process, loss by loss.

Two ranks of a core each train the demo model on the demo's text as long as the demo's curve is
steep. What the curves may differ by is measured too: single processes that take a step's rows in
another order differ from each other by rounding alone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console

from hecate.bench.crew import crew_of, usable_cores
from hecate.bench.divergence import Allowance, Comparison, Curve, rows_of, summarise
from hecate.bench.peers import Job
from hecate.bench.report import BenchOptions, Report, require_known
from hecate.bench.training import Training
from hecate.bench.worker import do_tasks
from hecate.bench.workloads import (
    DEMO,
    TWO_RANKS,
    Layout,
    Workload,
    write_batches,
    write_weights,
)
from hecate.data import DataConfig
from hecate.data.progress import progress_bars
from hecate.fssdp.config import CostsConfig, ExpertsConfig
from hecate.fssdp.routing import RouterConfig
from hecate.planner.policies import FssdpConfig, SwappingConfig
from hecate.train.optim import OptimizerConfig, ScheduleConfig

SEED = 1
OPTIMIZER = OptimizerConfig(learning_rate=1.5e-3)  # the demo's, and its schedule
SCHEDULE = ScheduleConfig(kind="wsd", warmup_steps=30)
ALONE = Layout("1 process", world_size=1, threads=1)
TIMEOUT_S = 3600.0

# Copies and moves that cost next to nothing: every policy makes as many as it ever would.
_CHEAP = CostsConfig(slot_s=1e-6, copy_s=1e-9)
_HIDDEN = _CHEAP.model_copy(update={"hidden_s": 4e-9})  # as long as eight gathers take
_PAPER = FssdpConfig(materialization="paper", sharding="paper", dispatch="even")
POLICIES: Mapping[str, ExpertsConfig] = {
    "fssdp": ExpertsConfig(costs=_CHEAP),
    "expert_parallel": ExpertsConfig(policy="expert_parallel"),
    "swapping": ExpertsConfig(policy="swapping", swapping=SwappingConfig(every=10), costs=_CHEAP),
    "fsdp": ExpertsConfig(policy="fsdp", costs=_CHEAP),
    "shadowing": ExpertsConfig(policy="shadowing", costs=_CHEAP),
    "replication": ExpertsConfig(policy="replication", costs=_CHEAP),
    "fssdp, even dispatch": ExpertsConfig(fssdp=FssdpConfig(dispatch="even"), costs=_CHEAP),
    "fssdp, rematerialized": ExpertsConfig(rematerialize=True, costs=_CHEAP),
    "fssdp, planned copies alone": ExpertsConfig(fssdp=FssdpConfig(calibrate=False), costs=_CHEAP),
    "fssdp, by the paper": ExpertsConfig(fssdp=_PAPER, costs=_HIDDEN),
}

# From one single process to the next the differences from the first scatter by some times, and the
# step at which they begin to grow by some steps. Floors: a few ulp of a mean of fp32 terms.
FACTOR, LAG = 4.0, 10
FLOORS = {"float32": 1e-6, "bfloat16": 1e-3, "float64": 1e-12}
COLUMNS = {
    "trained": "trained",
    "name": "in which way",
    "steps": "steps",
    "difference_1": "differs at 1",
    "difference_10": "by 10",
    "difference_50": "by 50",
    "difference_200": "by 200",
    "worst_difference": "at most",
    "share_of_tolerance": "of tolerance",
    "copies_per_step": "copies/step",
    "moves": "moves",
    "imbalance": "owners max/mean",
    "repeats_to_the_bit": "repeats",
    "last_loss": "last loss",
}


@dataclass(frozen=True)
class Run:
    """One comparison of trainings: which model in which dtype, for how long, in which ways.

    ``controls``: how many single processes with sums in another order, of ``control_steps``.
    ``repeated``: policies that train ``repeat_steps`` a second time.
    """

    name: str
    dtype: str
    balance_loss: float
    steps: int
    policies: tuple[str, ...]
    controls: int
    control_steps: int
    repeated: tuple[str, ...] = ()
    repeat_steps: int = 0


@dataclass(frozen=True)
class Setting:
    """What is trained; ``schedule_steps``: the length of the run whose first steps these are."""

    runs: tuple[Run, ...]
    workload: Workload = DEMO
    schedule_steps: int = 200
    data: DataConfig = DataConfig()


def setting_of(options: BenchOptions) -> Setting:
    """All policies over 200 steps, or those of ``only``; quick: 24 steps, and some unless named.

    Raises ``ConfigError`` for a policy that there is not.
    """
    require_known("there is no such way to place experts", options.only, POLICIES)
    everyone = tuple(name for name in POLICIES if not options.only or name in options.only)
    if options.quick:
        few = options.only or ("fssdp", "expert_parallel", "swapping", "fsdp")
        again, wide = options.only or ("fssdp",), options.only or ("fssdp", "swapping")
        return Setting(
            (
                Run("no balance loss", options.dtype, 0.0, 24, few, 3, 34, again, 12),
                Run("fp64", "float64", 0.0, 11, wide, 1, 11),
            )
        )
    balanced = tuple(name for name in ("fssdp", "expert_parallel") if name in everyone)
    runs = (
        Run("no balance loss", options.dtype, 0.0, 200, everyone, 3, 200, everyone, 30),
        Run("demo", options.dtype, 0.01, 200, balanced, 3, 200),
        Run("fp64", "float64", 0.0, 30, everyone, 1, 30),
    )
    return Setting(tuple(run for run in runs if run.policies))


def bench_curves(options: BenchOptions) -> Report:
    """Every policy beside a single process. Raises ``ContenderError`` when a rank fails."""
    load, setting = os.getloadavg()[0], setting_of(options)
    return report_of(measure(setting, Console(stderr=True)), setting, load)


def measure(setting: Setting, console: Console) -> list[Comparison]:
    """Train everything; processes are gone at the end."""

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with tempfile.TemporaryDirectory(prefix="hecate-bench-") as temporary:
        folder = Path(temporary)
        job = prepare(setting, folder, console)
        return [Trainings(run, job, folder, say).comparison() for run in setting.runs]


def prepare(setting: Setting, folder: Path, console: Console) -> Job:
    """Rows and weights of all trainings, on disk."""
    work = setting.workload
    with progress_bars(console) as progress:
        batches = write_batches(
            work,
            setting.schedule_steps,
            data=setting.data,
            seed=SEED,
            folder=folder,
            progress=progress,
        )
    return Job(
        workload=work,
        layout=TWO_RANKS,
        steps=setting.schedule_steps,
        dtype="float32",
        seed=SEED,
        batches=batches,
        weights=write_weights(work, seed=SEED, folder=folder),
        optimizer=OPTIMIZER,
    )


class Trainings:
    """The trainings of one run, single processes first and on a core each, side by side."""

    def __init__(self, run: Run, job: Job, folder: Path, say: Callable[[str], None]) -> None:
        self._run, self._job = run, replace(job, dtype=run.dtype)
        self._folder, self._say = folder, say

    def comparison(self) -> Comparison:
        run, cores = self._run, usable_cores()
        others = other_orders(self._job.workload.batch_sequences, cut=not run.balance_loss)
        orders = {"": (), **dict(list(others.items())[: run.controls])}
        places: list[tuple[int, ...]] = [(core,) for core in cores] or [()]
        with ThreadPoolExecutor(len(places)) as pool:
            done = pool.map(
                lambda number, rows: self.curve(
                    "expert_parallel",
                    ALONE,
                    places[number % len(places)],
                    run.control_steps,
                    micro_batches=rows,
                ),
                range(len(orders)),
                orders.values(),
            )
            reference, *controls = done
        self._say(f"{run.name}: {len(orders)} single processes")
        return Comparison(
            name=run.name,
            dtype=run.dtype,
            allowance=Allowance(FACTOR, LAG, FLOORS[run.dtype]),
            reference=reference,
            controls=dict(zip(list(orders)[1:], controls, strict=True)),
            curves={name: self.curve(name, TWO_RANKS, cores, run.steps) for name in run.policies},
            repeats={
                name: self.curve(name, TWO_RANKS, cores, run.repeat_steps) for name in run.repeated
            },
        )

    def curve(
        self,
        policy: str,
        layout: Layout,
        cores: Sequence[int],
        steps: int,
        *,
        micro_batches: tuple[tuple[int, ...], ...] = (),
    ) -> Curve:
        """Train ``steps`` steps in processes of their own."""
        task = Training(
            job=replace(self._job, layout=layout),
            steps=steps,
            experts=POLICIES[policy],
            router=RouterConfig(balance_loss=self._run.balance_loss),
            schedule=SCHEDULE,
            micro_batches=micro_batches,
        )
        with (
            tempfile.TemporaryDirectory(dir=self._folder) as temporary,
            crew_of(
                policy,
                do_tasks,
                layout,
                cores=cores,
                folder=Path(temporary),
                timeout_s=300,
                seed=SEED,
                keep_freed_memory=True,
            ) as crew,
        ):
            curve = crew.do(task, timeout_s=TIMEOUT_S)[0]
        self._say(
            f"{self._run.name}: {policy} on {layout.world_size}, {len(curve.losses)} steps, "
            f"loss {curve.losses[-1]:.4f}"
        )
        return curve


def other_orders(num_rows: int, *, cut: bool) -> Mapping[str, tuple[tuple[int, ...], ...]]:
    """Rows of each micro-batch, in ways that change nothing but the order of sums.

    ``cut``: whether more than one micro-batch changes nothing else.
    """
    rows, half = tuple(range(num_rows)), num_rows // 2
    orders: dict[str, tuple[tuple[int, ...], ...]] = {
        "rows backwards": (rows[::-1],),
        "odd rows first": (rows[1::2] + rows[::2],),
    }
    if cut:
        return orders | {"half after half": (rows[:half], rows[half:])}
    return orders | {"second half first": (rows[half:] + rows[:half],)}


def report_of(comparisons: Sequence[Comparison], setting: Setting, load_before: float) -> Report:
    """The report of what ``measure`` found; ``load_before``: the machine's load average then."""
    settings: dict[str, JsonValue] = {
        "seed": SEED,
        "optimizer": OPTIMIZER.model_dump(mode="json"),
        "schedule": SCHEDULE.model_dump(mode="json"),
        "schedule_steps": setting.schedule_steps,
        "clip_norm": 1.0,
        "layout": f"{TWO_RANKS.world_size} processes x {TWO_RANKS.threads} thread, each on a core",
        "load_average_before": round(load_before, 2),
        "model": dict(setting.workload.sizes),
        "tokens_per_step": setting.workload.tokens_per_step,
        "policies": {name: config.model_dump(mode="json") for name, config in POLICIES.items()},
        "balance_loss": {run.name: run.balance_loss for run in setting.runs},
        "tolerance": {
            comparison.name: {
                "factor": comparison.allowance.factor,
                "lag": comparison.allowance.lag,
                "floor": comparison.allowance.floor,
                "by_step": list(comparison.allowed),
            }
            for comparison in comparisons
        },
        "reference_losses": {
            comparison.name: list(comparison.reference.losses) for comparison in comparisons
        },
    }
    rows = [row for comparison in comparisons for row in rows_of(comparison)]
    return Report(
        "curves", settings, COLUMNS, tuple(rows), summarise(comparisons), _notes(comparisons)
    )


def _notes(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    notes = [
        "differs: relative, from the loss of a single process on the same rows, the largest up to "
        "that step. Rows without a share of the tolerance are single processes, too, which take a "
        "step's rows in another order.",
        f"tolerance at a step: {FACTOR:g} times the most that any of these differs by {LAG} steps "
        "later, since chance decides when differences begin to grow; at least a few ulp.",
        "copies and moves cost next to nothing here, so that every policy makes many.",
    ]
    for comparison in comparisons:
        beyond = [
            str(row["name"])
            for row in rows_of(comparison)
            if float(str(row.get("share_of_tolerance", 0.0))) > 1
        ]
        if beyond:
            notes.append(f"{comparison.name}: beyond the tolerance: {'; '.join(beyond)}.")
    return tuple(notes)
