"""``hecate bench faults``: a rank is killed every minute, and what of the time is still training.

Three ways to go on, on one machine and two ranks: the supervisor of ``hecate train --ranks``, where
survivors stay; ``torchrun``, which starts all ranks again; and Ray. And what saving costs: the
steps after a save beside all others.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import JsonValue
from rich.console import Console

from hecate.bench.disturbed import Disturbance, Way, children, ray_workers, run_disturbed
from hecate.bench.effective import Course, best_interval
from hecate.bench.report import BenchOptions, Report, Row
from hecate.bench.workloads import DEMO, Workload
from hecate.data import DataConfig

RANKS = 2
STANDARD_LIBRARY = DataConfig()
STALL_EVERY = 50  # steps, of the figure
SAVED_EVERY = 8  # in the run without failures: what a save costs is the same, but known sooner
LEAST_EVERY = 4  # with failures, so that most steps have no save near
IN_PLACE = Way("in_place", "hecate train --ranks", ("--ranks", str(RANKS)), children)
TORCHRUN = Way(
    "torchrun",
    "torchrun --max-restarts",
    ("--resume", "auto"),
    children,
    before=(
        *("-m", "torch.distributed.run", "--standalone", "--monitor-interval=0.1"),
        *(f"--nproc-per-node={RANKS}", "--max-restarts=1000", "-m", "hecate"),
    ),
)
RAY = Way(
    "ray",
    "hecate train --ray",
    ("--ray", "--set", f"ray.num_workers={RANKS}", "--set", "ray.max_failures=1000"),
    ray_workers,
)
WAYS = (IN_PLACE, TORCHRUN, RAY)

COLUMNS = {
    "way": "way",
    "failures": "failures",
    "effective_time_ratio": "effective time",
    "paced": "at the calm pace",
    "steps": "steps that count",
    "step_s": "median step s",
    "saved_every": "steps between saves",
    "work_again_s": "work again s",
    "back_s": "kill to next step s",
    "phases": "of which s",
    "status": "status",
}


@dataclass(frozen=True)
class Pace:
    """Seconds: between failures, of the run of each way, and of the one without failures."""

    failure_every_s: float
    run_s: Mapping[str, float]
    stall_s: float


WHOLE = Pace(60.0, {"in_place": 600.0, "torchrun": 180.0, "ray": 180.0}, 120.0)
QUICK = Pace(60.0, {"in_place": 150.0, "torchrun": 90.0, "ray": 90.0}, 100.0)


def bench_faults(options: BenchOptions) -> Report:
    """All ways. Raises ``HecateError`` where a run ends by itself."""
    return measure(QUICK if options.quick else WHOLE, DEMO, options.dtype, Console(stderr=True))


def measure(
    pace: Pace,
    workload: Workload,
    dtype: str,
    console: Console,
    *,
    ways: Sequence[Way] = WAYS,
    data: DataConfig = STANDARD_LIBRARY,
) -> Report:
    """Without failures first, to know what a save costs and how often it is best done."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="hecate-bench-") as temporary:
        folder = Path(temporary)
        _say(console, "without failures")
        calm = run_disturbed(
            IN_PLACE,
            _config("calm", workload, dtype, SAVED_EVERY, data),
            folder,
            Disturbance(pace.stall_s + 1, pace.stall_s),
        )
        course = Course.of(calm.lines)
        stall_s = course.save_stall_s(SAVED_EVERY)
        best = best_interval(
            step_s=course.step_s,
            save_s=stall_s,
            mean_time_between_failures_s=pace.failure_every_s,
        )
        every = max(LEAST_EVERY, best)
        rows = []
        for way in ways:
            _say(console, f"{way.title}, a rank killed every {pace.failure_every_s:.0f} s")
            config = _config(way.name, workload, dtype, every, data)
            rows.append(_row(way, pace, config, course.step_s, stall_s, folder))
    return _report(pace, workload, dtype, course, stall_s, rows, load)


def _say(console: Console, text: str) -> None:
    console.print(f"faults: {text}", highlight=False, markup=False, soft_wrap=True)


def _config(
    name: str, workload: Workload, dtype: str, every: int, data: DataConfig
) -> dict[str, Any]:
    """A run without an end, in the folder that it is started in."""
    return {
        "name": name,
        "folder": "runs",
        "model": {"family": workload.family, "sizes": dict(workload.sizes)},
        "data": {
            "path": data.path,
            "cache": data.cache,
            "sequence_tokens": workload.sequence_tokens,
            "tokenizer": {"vocab_size": workload.vocab_size},
        },
        "train": {
            "steps": 1_000_000,
            "batch_sequences": workload.batch_sequences,
            "dtype": dtype,
        },
        "schedule": {"kind": "constant"},
        "checkpoint": {"every": every},
        "logging": {"every": 1, "sinks": ["jsonl"], "loads": False},
    }


def _row(
    way: Way, pace: Pace, config: dict[str, Any], calm_s: float, save_s: float, folder: Path
) -> Row:
    """``calm_s``: a step of the run without failures; ``save_s``: what a save adds to steps."""
    row: dict[str, JsonValue] = {"way": way.title, "name": way.name, "status": "ok"}
    if way is RAY and importlib.util.find_spec("ray") is None:
        return row | {"status": "ray is not installed: pip install 'hecate[ray]'"}
    total_s = pace.run_s[way.name]
    ran = run_disturbed(way, config, folder, Disturbance(pace.failure_every_s, total_s))
    course = Course.of(ran.lines)
    losses = course.losses(ran.kills_s)
    saves = course.steps / config["checkpoint"]["every"]
    row |= {
        "failures": len(ran.kills_s),
        "effective_time_ratio": course.effective(
            ran.kills_s, saves_s=saves * max(save_s, 0.0), ended_s=ran.ended_s
        ),
        "paced": course.paced(min(course.step_s, calm_s), ran.ended_s),
        "steps": course.steps,
        "step_s": course.step_s,
        "saved_every": config["checkpoint"]["every"],
    }
    if len(losses) < len(ran.kills_s):
        row["status"] = f"no step after the last {len(ran.kills_s) - len(losses)} failures"
    if losses:
        row |= {
            "work_again_s": median(loss.work_s for loss in losses),
            "back_s": median(loss.back_s for loss in losses),
            "back_s_each": [loss.back_s for loss in losses],
        }
    if ran.recoveries:
        names = ran.recoveries[0]["seconds"]
        spans = {n: median(r["seconds"][n] for r in ran.recoveries) for n in names}
        row |= {
            "phases": ", ".join(f"{name} {seconds:.2f}" for name, seconds in spans.items()),
            "phases_s": dict(spans),
        }
    return row


def _report(
    pace: Pace,
    workload: Workload,
    dtype: str,
    calm: Course,
    stall_s: float,
    rows: list[Row],
    load: float,
) -> Report:
    stall = stall_s / (STALL_EVERY * calm.step_s)
    summary = {"checkpoint_stall": stall, "save_s": stall_s, "step_s": calm.step_s}
    for row in rows:
        if "effective_time_ratio" not in row:
            continue
        ratio = float(str(row["effective_time_ratio"]))
        name = str(row["name"])
        summary["effective_time_ratio" if name == "in_place" else f"effective_{name}"] = ratio
        if "back_s" in row:
            summary[f"back_s_{name}"] = float(str(row["back_s"]))
    settings: dict[str, JsonValue] = {
        "dtype": dtype,
        "model": workload.name,
        "ranks": RANKS,
        "failure_every_s": pace.failure_every_s,
        "run_s": dict(pace.run_s),
        "stall_every": STALL_EVERY,
        "saved_every": SAVED_EVERY,
        "load_average_before": round(load, 2),
    }
    notes = [
        "effective time: what of the time failures and saves did not take. A failure takes what "
        "its step and the three after it are longer than undisturbed ones near by, steps that are "
        "done again included; a save what it takes in the run without failures.",
        "at the calm pace: steps that count, each at the run's own median or at that of the run "
        "without failures, whichever is less, over the time that passed: the same, less what the "
        "machine was slower in this run.",
        f"checkpoint_stall: what a save adds to the steps after it, over {STALL_EVERY} steps "
        f"({calm.steps} steps without failures, a save every {SAVED_EVERY}).",
        "steps between saves: Young's sqrt(2 x save x time between failures), from these.",
    ]
    if load > 1:
        notes.append(f"the machine was busy before this began (load average {load:.1f}).")
    return Report("faults", settings, COLUMNS, tuple(rows), summary, tuple(notes))
