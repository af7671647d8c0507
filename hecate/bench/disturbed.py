"""A training run that somebody keeps killing ranks of, from outside."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from hecate.errors import HecateError

START_S = 180.0
LOOKS_EVERY_S = 0.1


@dataclass(frozen=True)
class Way:
    """How a run is launched, ``words`` after ``hecate train CONFIG``, or behind ``before``.

    ``ranks`` gives the pids of its ranks, by the launcher's process and the run's folder.
    """

    name: str
    title: str
    words: tuple[str, ...]
    ranks: Callable[[int, Path], Sequence[int]]
    before: tuple[str, ...] = ("-m", "hecate")


@dataclass(frozen=True)
class Disturbance:
    """Kill a rank every ``every_s``, chosen by ``seed``, the first time so long after the first
    step; the run ends after ``total_s``, or, where it is still mending then, with its next step."""

    every_s: float
    total_s: float
    seed: int = 0


@dataclass(frozen=True)
class Ran:
    """What a run wrote: its lines of steps; when it was disturbed and ended, in seconds since the
    epoch; how it told of recoveries."""

    lines: tuple[dict[str, Any], ...]
    kills_s: tuple[float, ...]
    ended_s: float
    recoveries: tuple[dict[str, Any], ...]


def children(launcher: int, run: Path) -> list[int]:
    """The launcher's own processes that are ranks: a supervisor's, or torchrun's."""
    return [process.pid for process in psutil.Process(launcher).children()]


def ray_workers(launcher: int, run: Path) -> list[int]:
    """Those of the newest attempt, which the run's folder names."""
    path = run / "workers.jsonl"
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text().splitlines()]
    attempts = [record["workers"] for record in records if "workers" in record]
    return [worker["pid"] for worker in attempts[-1]] if attempts else []


def run_disturbed(way: Way, config: dict[str, Any], folder: Path, disturbance: Disturbance) -> Ran:
    """Train as ``config`` says until the time is over; what came of it.

    Raises ``HecateError``, with the end of what it printed, where the run ends by itself.
    """
    name = str(config["name"])
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    run, log = folder / "runs" / name, folder / f"{name}.log"
    command = [sys.executable, *way.before, "train", str(path), *way.words]
    with log.open("wb") as output:
        launcher = subprocess.Popen(
            command,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    try:
        watch = _Watch(launcher, run, log)
        watch.until(lambda: watch.steps() > 0, time.monotonic() + START_S)
        kills_s = _kill_now_and_then(watch, way, disturbance)
        ended_s = time.time()
    finally:
        _end(launcher)
    recoveries = run / "recoveries.jsonl"
    lines = [json.loads(line) for line in _lines(run / "metrics.jsonl")]
    return Ran(
        tuple(line for line in lines if "loss" in line),
        tuple(kills_s),
        ended_s,
        tuple(map(json.loads, _lines(recoveries))) if recoveries.exists() else (),
    )


@dataclass(frozen=True)
class _Watch:
    launcher: subprocess.Popen[bytes]
    run: Path
    log: Path

    def steps(self) -> int:
        """Whether steps are written, and how much: the size of the metrics."""
        path = self.run / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def mended(self, failures: int) -> bool:
        """Whether it was taken up again after as many, and did a step since."""
        starts = [json.loads(line) for line in _lines(self.run / "starts.jsonl")]
        if len(starts) <= failures:
            return False
        lines = _lines(self.run / "metrics.jsonl")
        return bool(lines) and json.loads(lines[-1])["time_s"] >= starts[-1]["time_s"]

    def until(self, met: Callable[[], bool], deadline_s: float) -> bool:
        """Wait for it; whether it came in time."""
        while not met():
            if self.launcher.poll() is not None:
                raise HecateError(
                    "a run that was to go on whatever happens has ended",
                    got=self.log.read_text(errors="replace")[-2000:],
                )
            if time.monotonic() > deadline_s:
                return False
            time.sleep(LOOKS_EVERY_S)
        return True


def _lines(path: Path) -> list[str]:
    """Those that are written to the end."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _kill_now_and_then(watch: _Watch, way: Way, disturbance: Disturbance) -> list[float]:
    pick = random.Random(disturbance.seed)
    began_s = time.monotonic()
    kills_s: list[float] = []
    ends_s = began_s + disturbance.total_s
    while True:
        next_s = began_s + disturbance.every_s * (len(kills_s) + 1)
        watch.until(lambda: False, min(next_s, ends_s))
        if next_s >= ends_s:
            watch.until(lambda: watch.mended(len(kills_s)), ends_s + disturbance.every_s)
            return kills_s
        victim = pick.choice(sorted(way.ranks(watch.launcher.pid, watch.run)))
        os.kill(victim, signal.SIGKILL)
        kills_s.append(time.time())


def _end(launcher: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the run, processes that it started on its own included."""
    try:
        processes = [psutil.Process(launcher.pid)]
        processes += processes[0].children(recursive=True)
    except psutil.NoSuchProcess:
        processes = []
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=10)
    launcher.wait()
