"""``hecate bench soak``: two replicas under mixed load, one of which is killed at times."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import torch
import yaml
from rich.console import Console

from hecate.bench.report import BenchOptions, Report
from hecate.bench.serve.command import Served, serving
from hecate.bench.soak.accounts import (
    COLUMNS,
    Course,
    Sample,
    failures,
    fault_notes,
    growths,
    outcome_rows,
    process_rows,
    summary,
)
from hecate.bench.soak.asks import Asks
from hecate.bench.soak.bad import MAX_BODY_BYTES, SERVED
from hecate.bench.soak.clients import Clients
from hecate.bench.soak.load import Load, Pressure
from hecate.bench.soak.meaning import Meanings
from hecate.bench.soak.references import KV_BYTES_PER_TOKEN, References, make_references
from hecate.bench.soak.watched import Processes

Say = Callable[[str], None]
SEED = 0
NAMES = ("x", "y", "z")
KEYS = {"ann": "key-of-ann", "ben": "key-of-ben"}
POOR = ("poor", "key-of-poor", 6)  # requests a minute
BLOCKS, BLOCK_TOKENS = 160, 16
REPLICAS = 2
RSS_BOUND_MIB_PER_HOUR = 30.0


@dataclass(frozen=True)
class Pace:
    """Seconds: in all; between kills, the first after half of that; between moments of quiet; that
    a process may grow in, and from which on it is watched. ``deadline_s``: of each client."""

    run_s: float
    kill_every_s: float
    quiet_every_s: float
    warm_up_s: float
    least_s: float
    sample_s: float
    deadline_s: float = 60.0
    quiet_s: float = 30.0
    abandoned: int = 40
    prompts: int = 24
    pressure: Pressure = field(default_factory=Pressure)


WHOLE = Pace(1800.0, 120.0, 240.0, 240.0, 300.0, 5.0)
QUICK = Pace(90.0, 40.0, 45.0, 20.0, 20.0, 1.0)


def run_bench(options: BenchOptions) -> Report:
    """What ``bench_soak`` promises."""
    console = Console(stderr=True)
    pace = QUICK if options.quick else WHOLE
    if options.minutes:
        pace = replace(pace, run_s=60 * options.minutes)
    with tempfile.TemporaryDirectory(prefix="hecate-bench-soak-") as folder:
        return measure(pace, Path(folder), lambda line: console.print(f"soak: {line}"))


def measure(pace: Pace, folder: Path, say: Say) -> Report:
    """A soak in ``folder``."""
    torch.set_num_threads(1)
    references = make_references(folder, seed=SEED, most=pace.prompts)
    say(f"{len(references.prompts)} prompts, {len(references.adapters)} adapters have answers")
    config = write_config(references.folder, folder)
    with serving(config, {}, folder) as served:
        say(f"{REPLICAS} replicas answer")
        course = asyncio.run(_soak(pace, references, served, say))
    found = growths(course.samples, warm_up_s=pace.warm_up_s, least_s=pace.least_s)
    return Report(
        bench="soak",
        settings={
            "seed": SEED,
            "seconds": course.end_s - course.begin_s,
            "kill_every_s": pace.kill_every_s,
            "deadline_s": pace.deadline_s,
            "clients": pace.pressure.clients,
            "app": yaml.safe_load(config.read_text(encoding="utf-8")),
            "failures": failures(course.outcomes, course.kills_s),
        },
        columns=COLUMNS,
        rows=(*outcome_rows(course.outcomes), *process_rows(found)),
        summary=summary(course, found),
        notes=(
            "greedy answers are compared with those of transformers and PEFT in fp32; refused: by "
            "a 4xx that says why; failed: told that a replica was lost; faults: a wrong answer, an "
            "error without OpenAI's shape or of another status, or no end in "
            f"{pace.deadline_s:.0f} s",
            f"processes: from {pace.warm_up_s:.0f} s after their start, the last third beside the "
            f"first; replicas that were killed earlier are not in it; flat is up to "
            f"{RSS_BOUND_MIB_PER_HOUR:.0f} MiB an hour",
            *fault_notes(course.outcomes),
        ),
    )


def write_config(model: Path, folder: Path) -> Path:
    """The app's configuration, and the keys of its tenants."""
    poor, key, requests = POOR
    tenants: list[dict[str, Any]] = [
        {"name": name, "sha256": [_digest(each)]} for name, each in KEYS.items()
    ]
    tenants.append({"name": poor, "sha256": [_digest(key)], "requests_per_minute": requests})
    keys = folder / "keys.yaml"
    keys.write_text(yaml.safe_dump({"tenants": tenants}), encoding="utf-8")
    kv_bytes = (BLOCKS + 0.5) * BLOCK_TOKENS * KV_BYTES_PER_TOKEN
    values = {
        "engine": {
            "model": str(model),
            "name": SERVED,
            "dtype": "float32",
            "device": "cpu",
            "threads": 1,
            "max_waiting": 8,
            "memory": {"kv_gib": kv_bytes / 2**30, "block_tokens": BLOCK_TOKENS},
            "scheduling": {"max_sequences": 16, "max_batch_tokens": 128},
            "lora": {"slots": 2, "max_rank": 16, "host_cache_mib": 1},
        },
        "api": {"keys_file": str(keys), "max_body_bytes": MAX_BODY_BYTES},
        "ingress": {"watch_s": 0.5},
        "replicas": {"min": REPLICAS, "max": REPLICAS, "health_period_s": 2, "drain_s": 10},
    }
    path = folder / "soak.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@dataclass
class _Watch:
    """What is seen beside the load."""

    processes: Processes
    samples: list[Sample] = field(default_factory=list)
    kills_s: list[float] = field(default_factory=list)
    replaced_s: list[float] = field(default_factory=list)


def make_load(
    references: References, session: aiohttp.ClientSession, url: str, pace: Pace
) -> tuple[Clients, Load]:
    """The load on ``url``, not begun, and who keeps account of what comes of it."""
    meanings = Meanings()
    clients = Clients(session, url, meanings, pace.deadline_s)
    keys = list(KEYS.values())

    def asks(draw: random.Random) -> Asks:
        return Asks(references, draw, names=NAMES, keys=keys, poor=POOR[1])

    load = Load(
        clients,
        asks,
        meanings,
        references,
        names=NAMES,
        key=keys[0],
        pressure=pace.pressure,
        seed=SEED,
    )
    return clients, load


async def _soak(pace: Pace, references: References, served: Served, say: Say) -> Course:
    watch = _Watch(Processes(served.process_id))
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        clients, load = make_load(references, session, served.url, pace)
        begin_s = time.monotonic()
        load.start()
        beside = [
            asyncio.ensure_future(each)
            for each in (
                _sample(watch, pace.sample_s),
                _kill(watch, load, pace, begin_s, say),
                _tell(clients, say),
            )
        ]
        try:
            await _quiets(load, pace, begin_s)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        await load.stop()
        end_s = time.monotonic()
        await load.quiet(pace.quiet_s)
        abandoned = await load.abandon(pace.abandoned, pace.quiet_s)
        watch.samples += watch.processes.samples()
    for task in beside:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    return Course(
        begin_s,
        end_s,
        tuple(clients.outcomes),
        tuple(watch.samples),
        tuple(load.quiets),
        tuple(watch.kills_s),
        tuple(watch.replaced_s),
        abandoned,
    )


async def _quiets(load: Load, pace: Pace, begin_s: float) -> None:
    """Let the load run its time, with moments of quiet."""
    end_s = begin_s + pace.run_s
    due_s = begin_s + pace.quiet_every_s
    while due_s < end_s:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        await load.quiet(pace.quiet_s)
        due_s += pace.quiet_every_s
    await asyncio.sleep(max(0.0, end_s - time.monotonic()))


async def _sample(watch: _Watch, every_s: float) -> None:
    while True:
        watch.samples += watch.processes.samples()
        await asyncio.sleep(every_s)


async def _kill(watch: _Watch, load: Load, pace: Pace, begin_s: float, say: Say) -> None:
    """In the first third of the time the oldest replica, so that each is killed once; then always
    the youngest, so that what leaks in the other has time to show."""
    due_s = begin_s + pace.kill_every_s / 2
    while due_s < begin_s + pace.run_s - pace.kill_every_s / 4:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        due_s += pace.kill_every_s
        engines = watch.processes.engines()
        if len(engines) < REPLICAS:
            say(f"only {len(engines)} replicas live, nobody is killed now")
            continue
        before = set(await load.loads())
        early = time.monotonic() - begin_s < pace.run_s / 3
        with suppress(ProcessLookupError):
            watch.processes.kill(engines[0] if early else engines[-1])
        killed_s = time.monotonic()
        watch.kills_s.append(killed_s)
        while not set(await load.loads()) - before and time.monotonic() < due_s:
            await asyncio.sleep(0.5)
        watch.replaced_s.append(time.monotonic() - killed_s)
        say(f"a replica was killed, and replaced after {watch.replaced_s[-1]:.0f} s")


async def _tell(clients: Clients, say: Say) -> None:
    while True:
        await asyncio.sleep(60)
        faults = sum(one.kind in ("wrong", "unclear", "hung") for one in clients.outcomes)
        say(f"{len(clients.outcomes)} requests, {faults} faults")


def _digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()
