"""``hecate bench gittins``: nine classes of applications under all policies."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from rich.console import Console

from hecate.bench.gittins import figures, mg1
from hecate.bench.gittins.matrix import (
    ALL_POLICIES,
    FOREVER,
    LOADS,
    POISSON,
    REQUEST_FCFS,
    Found,
    Setting,
    Stage,
    learnt,
    try_all,
)
from hecate.bench.gittins.prewarm import figures as warming
from hecate.bench.gittins.real import Meter, engine_of, serve
from hecate.bench.gittins.replica import EngineShape
from hecate.bench.gittins.steps import StepTimes, fit
from hecate.bench.gittins.workload import Job, Scale, history, jobs, poisson
from hecate.bench.report import BenchOptions, Report
from hecate.bench.serve.models import MODELS, write_model
from serving.bench.traces import read_trace
from serving.scheduling.applications.book import Book
from serving.scheduling.applications.live import Ask
from serving.scheduling.applications.order import Order
from serving.scheduling.applications.policies import POLICIES
from serving.scheduling.applications.policies.config import OrderConfig
from serving.scheduling.applications.tags import Tags

Say = Callable[[str], None]
MODEL = "demo"
CONTEXT = 4096
SEQUENCES = 8
USUAL_CONTEXT = 1024
"""Tokens before a row, for what one costs."""
PUBLISHED_STEP_S = 0.06
"""That tools' published seconds go with."""
SHARE = 0.85
ORDER = OrderConfig()
REAL_LENGTH = 0.2
GITTINS = "gittins"
WARM_COLUMNS = {
    "what": "warmed",
    "rule": "rule",
    "hit": "hit",
    "hidden": "hidden",
    "held_s": "held s",
}


@dataclass(frozen=True)
class Pace:
    """How much is tried: ``count`` instances in each run, ``seeds`` of each setting, ``past``
    instances of each class before; ``real``: instances on the real engine; ``warm``: of what is
    made ready."""

    count: int
    seeds: int
    past: int
    loads: tuple[float, ...]
    real: int
    rounds: int
    serial: int
    warm: warming.Extent


WHOLE = Pace(200, 10, 300, LOADS, 80, 3, 40_000, warming.WHOLE)
QUICK = Pace(200, 1, 100, (0.9, 1.1), 30, 1, 8_000, warming.QUICK)


def run_bench(options: BenchOptions) -> Report:
    """What ``bench_gittins`` promises."""
    console = Console(stderr=True)
    pace = QUICK if options.quick else WHOLE
    traces = {
        Path(path).stem: [arrival.at_s for arrival in read_trace(Path(path).expanduser()).arrivals]
        for path in options.trace
    }
    return measure(options, pace, traces, lambda line: console.print(line, markup=False))


def measure(options: BenchOptions, pace: Pace, traces: dict[str, list[float]], say: Say) -> Report:
    real = asyncio.run(on_the_engine(options.dtype, pace, say))
    stage = stage_of(real.times, 1.0, pace.past)
    saturation = stage.saturation(2 * pace.count, seed=99)
    say(f"a queue releases {stage.released} of {SEQUENCES}; {saturation:.3g} instances/s at most")
    table = figures.cells(simulate(stage, pace, traces, saturation, say))
    serial = mg1.check(np.random.default_rng(5), pace.serial, 0.7)
    tick_ms = tick_ms_of(stage, 1000)
    warmed, warm_rows = warming.prewarm_figures(pace.warm, say)
    rows = [*figures.rows(table), *real.rows]
    for name, response in serial.items():
        rows.append(
            {
                "arrivals": "M/G/1",
                "load": 0.7,
                "policy": name,
                "mean_s": response.measured_s,
                "theory_s": response.theory_s,
                "simulated": True,
            }
        )
    return Report(
        "gittins",
        {
            "model": MODEL,
            "dtype": options.dtype,
            "count": pace.count,
            "seeds": pace.seeds,
            "history": pace.past,
            "sequences": SEQUENCES,
            "released": stage.released,
            "saturation_per_s": saturation,
            "steps": asdict(real.times),
            "ageing_s": ORDER.ageing_s,
            "margin": ORDER.margin,
            "real_length": REAL_LENGTH,
        },
        {**figures.COLUMNS, **WARM_COLUMNS},
        (*rows, *({"arrivals": "warmed", **row, "simulated": True} for row in warm_rows)),
        {
            **figures.summary(table),
            "real_mean_cut_vs_fcfs": real.cut,
            "sim_error": real.error,
            "mg1_fcfs_error": serial[REQUEST_FCFS].error,
            "mg1_gittins_error": serial[GITTINS].error,
            "tick_ms_1000": tick_ms,
            **warmed,
        },
        (
            "steps take what the native engine's took here; tools take as many steps as published",
            "deadlines are 1.2, 1.5 and 2 times what the instance takes alone, a third of each",
            "cuts, gaps and ratios in the summary are those of the worst setting at 0.9 and 1.1",
            "warmed: hits of units, and the share of containers' starts that nobody waited for",
        ),
    )


def stage_of(times: StepTimes, length: float, past: int) -> Stage:
    """Where lengths are ``length`` times those published."""
    context = max(1, round(USUAL_CONTEXT * length))
    full_s = times.rates(SEQUENCES, context).pace_s
    scale = Scale(length, length * full_s / PUBLISHED_STEP_S)
    released = times.enough(SEQUENCES, context, SHARE)
    rates = times.rates(released, context)
    blocks = SEQUENCES * CONTEXT // 16 // 2
    return Stage(
        EngineShape(SEQUENCES, blocks),
        times,
        rates,
        scale,
        ORDER,
        learnt(history(np.random.default_rng(7), scale, past), rates),
        released,
        tick_s=10 * full_s,
    )


def simulate(
    stage: Stage,
    pace: Pace,
    traces: dict[str, list[float]],
    saturation: float,
    say: Say,
) -> list[Found]:
    """Every setting, all seeds at once on as many cores as there are."""
    arrivals = (POISSON, *traces)
    each = [
        [Setting(name, load, seed) for name in arrivals for load in pace.loads]
        for seed in range(pace.seeds)
    ]
    run = partial(
        try_all,
        stage,
        traces=traces,
        policies=ALL_POLICIES,
        count=pace.count,
        saturation=saturation,
    )
    found: list[Found] = []
    with ProcessPoolExecutor(min(len(each), len(os.sched_getaffinity(0)))) as pool:
        for number, part in enumerate(pool.map(run, each), 1):
            found += part
            say(f"{number} of {len(each)} seeds simulated")
    return found


@dataclass(frozen=True)
class Real:
    """On the engine: how long its steps took, by how much Gittins cut the mean of request FCFS, and
    by how much the simulator was wrong at most, in a mean."""

    times: StepTimes
    cut: float
    error: float
    rows: Sequence[dict[str, JsonValue]]


async def on_the_engine(dtype: str, pace: Pace, say: Say) -> Real:
    with tempfile.TemporaryDirectory(prefix="hecate-bench-gittins-") as name:
        model = MODELS[MODEL]
        folder = write_model(model, Path(name), context=CONTEXT, dtype=getattr(torch, dtype))
        async with engine_of(folder, dtype, SEQUENCES) as engine:
            await Meter(engine).steps(1)
            times = fit(await Meter(engine).steps(pace.rounds))
            say(f"steps: {times}")
            stage = stage_of(times, REAL_LENGTH, pace.past)
            work = _work(stage, pace.real)
            fcfs = await serve(engine, work, "", (), stage.rates, ORDER)
        async with engine_of(folder, dtype, stage.released) as engine:
            ordered = await serve(engine, work, GITTINS, stage.history, stage.rates, ORDER)
    found = {REQUEST_FCFS: fcfs, GITTINS: ordered}
    rows: list[dict[str, JsonValue]] = []
    errors = []
    for policy, took in found.items():
        simulated = [outcome.seconds for outcome in stage.run(policy, work)]
        errors.append(abs(float(np.mean(simulated) / np.mean(took)) - 1))
        rows += [_real_row("engine", policy, took), _real_row("as simulated", policy, simulated)]
        say(f"{policy}: {np.mean(took):.3g} s on the engine, {np.mean(simulated):.3g} s simulated")
    cut = 1 - float(np.mean(ordered) / np.mean(fcfs))
    return Real(times, cut, max(errors), rows)


def _real_row(kind: str, policy: str, seconds: Sequence[float]) -> dict[str, JsonValue]:
    quantiles = dict(zip(("p50_s", "p95_s", "p99_s"), (50, 95, 99), strict=True))
    return {
        "arrivals": kind,
        "load": 1.0,
        "policy": policy,
        "mean_s": float(np.mean(seconds)),
        **{name: float(np.percentile(seconds, percent)) for name, percent in quantiles.items()},
    }


def _work(stage: Stage, count: int) -> list[Job]:
    """At saturation, so that runs are as short as they can be."""
    saturation = stage.saturation(4 * count, seed=98)
    drawn = jobs(np.random.default_rng(11), stage.scale, count)
    at_s = poisson(np.random.default_rng(12), count, saturation)
    return [replace(job, at_s=when_s) for job, when_s in zip(drawn, at_s, strict=True)]


def tick_ms_of(stage: Stage, count: int) -> float:
    """The median of refreshing all ranks where ``count`` instances are under way."""
    book = Book(FOREVER, lambda: stage.rates)
    book.restore(stage.history)
    order = Order(POLICIES[GITTINS](book), ORDER)
    names = [had.key.name for had in stage.history]
    rng = np.random.default_rng(13)
    asks = []
    for number in range(count):
        live = book.begin(Tags(names[number % len(names)], str(number)), "", 0.0)
        book.call_started(live, "first", f"{number}", 100, 0.0)
        book.served(live, f"{number}", 100, int(rng.integers(1, 200)))
        asks.append((live, Ask(f"{number}", number, 0.0, 100, 1000)))
    taken = []
    for _ in range(30):
        begun_s = time.perf_counter()
        order.tick(book.lives, 1.0)
        taken.append(1e3 * (time.perf_counter() - begun_s))
    return float(np.median(taken))
