"""What the driver and the workers of a run on Ray tell each other; ``workers.jsonl``.

One coordinator lives beside the driver for the whole run, whatever becomes of the workers. It is
the only writer of ``workers.jsonl``, which has a line for each group of workers that began and each
that failed::

    {"began_s": ..., "attempt": 1, "step": 0, "workers": [{"rank": 0, "pid": ..., "node": "...",
     "host": "...", "born_s": ..., "entered_s": ...}, ...]}
    {"failed_s": ..., "attempt": 1, "ranks": {"1": "ActorDiedError: ..."}}

Times are Unix seconds: ``born_s`` when the process started, ``entered_s`` when its group stood and
it had imported everything.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

FILE = "workers.jsonl"


@dataclass(frozen=True)
class WorkerStart:
    """One worker of an attempt."""

    rank: int
    pid: int
    node: str
    host: str
    born_s: float
    entered_s: float


@dataclass(frozen=True)
class Failure:
    """Why the attempt before this one ended, noticed when, in which step, with how many workers."""

    cause: str
    noticed_s: float
    at_step: int
    workers: int


@dataclass(frozen=True)
class Attempt:
    """The how manieth group of workers this is, and the newest saved step when the first began.

    ``failure``: of the one before; ``None`` for the first, and where the cluster's size changed.
    """

    number: int
    first_step: int
    failure: Failure | None = None


class Desk(Protocol):
    """A coordinator as workers and driver reach it from their processes."""

    def begin(self, step: int, workers: Sequence[WorkerStart]) -> Attempt:
        """Say that a group of workers goes on from ``step``."""

    def at_step(self, step: int) -> None:
        """Say, without waiting, which step begins."""

    def failed(self, ranks: Mapping[int, str]) -> int:
        """Say which ranks failed, and how; the step that their attempt went on from."""

    def ask_to_stop(self) -> None:
        """Ask all workers of this and later groups to end with a checkpoint."""

    def stop_asked(self) -> bool:
        """Wait until that is asked: true; false when nobody can ask any more."""


class Coordinator:
    """The coordinator itself: an actor with one event loop, so that its methods take turns."""

    def __init__(self, folder: str) -> None:
        self._path = Path(folder, FILE)
        self._attempts = 0
        self._first_step = self._step = self._at_step = self._workers = 0
        self._failure: Failure | None = None
        self._stop = asyncio.Event()

    async def begin(self, step: int, workers: Sequence[WorkerStart]) -> Attempt:
        self._attempts += 1
        if self._attempts == 1:
            self._first_step = step
        failure, self._failure = self._failure, None
        self._step = self._at_step = step
        self._workers = len(workers)
        started = {"attempt": self._attempts, "step": step}
        self._write({"began_s": _now(), **started, "workers": [asdict(each) for each in workers]})
        return Attempt(self._attempts, self._first_step, failure)

    async def at_step(self, step: int) -> None:
        self._at_step = step

    async def failed(self, ranks: Mapping[int, str]) -> int:
        self._write({"failed_s": _now(), "attempt": self._attempts, "ranks": dict(ranks)})
        causes = "; ".join(f"rank {rank}: {words}" for rank, words in ranks.items())
        self._failure = Failure(causes, _now(), self._at_step, self._workers)
        return self._step

    async def ask_to_stop(self) -> None:
        self._stop.set()

    async def stop_asked(self) -> bool:
        return await self._stop.wait()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


def _now() -> float:
    return round(time.time(), 3)
