"""The processes of one contender, or of all that share them, seen from the one that measures."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar, cast

from hecate.bench.turns import Failed, Ready, Turn
from hecate.bench.worker import Place, Task, Work, run_rank
from hecate.bench.workloads import Layout
from hecate.errors import HecateError

# Imported once in the server that ranks fork from, so that a rank starts in a fraction of a second.
PRELOAD = [
    "hecate.bench.worker",
    "hecate.bench.peers",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
]


Answer = TypeVar("Answer")


class ContenderError(HecateError):
    """A rank of ``contender`` raised, died or did not answer."""

    def __init__(self, contender: str, when: str, rank: int, reason: str, log: Path) -> None:
        self.contender, self.reason = contender, reason
        tail = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
        super().__init__(
            f"{contender} failed {when}, on rank {rank}",
            got="\n".join([reason, *(f"    | {line}" for line in tail)]),
        )


class Crew:
    """Every rank of a contender. They start at once, work only during turns, and end with us."""

    def __init__(
        self,
        name: str,
        processes: Sequence[BaseProcess],
        connections: Sequence[Connection],
        logs: Sequence[Path],
        timeout_s: float,
    ) -> None:
        self.name = name
        self._processes, self._connections, self._logs = processes, connections, logs
        self._timeout_s = timeout_s

    def wait_ready(self) -> dict[str, str]:
        """The settings that the contender reports once it is built."""
        answers = self._collect("to be built", self._timeout_s)
        assert isinstance(answers[0], Ready)
        return answers[0].settings

    def turn(self, steps: int) -> Turn:
        """Let it train ``steps`` steps; the time of its slowest rank, losses over all ranks."""
        answers = self._ask(steps, "in a turn", self._timeout_s)
        return combine([answer for answer in answers if isinstance(answer, Turn)])

    def do(self, task: Task[Answer], *, timeout_s: float) -> list[Answer]:
        """What ``task`` returns on each rank; for a crew whose work is ``do_tasks``."""
        return cast(list[Answer], self._ask(task, "in a task", timeout_s))

    def kill(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()
        for process in self._processes:
            process.join()

    def _ask(self, request: object, when: str, timeout_s: float) -> list[object]:
        for connection in self._connections:
            with suppress(OSError):  # a rank that has died: _collect says so
                connection.send(request)
        return self._collect(when, timeout_s)

    def _collect(self, when: str, timeout_s: float) -> list[object]:
        deadline = time.monotonic() + timeout_s
        answers: dict[int, object] = {}
        while len(answers) < len(self._connections):
            pending = {c: r for r, c in enumerate(self._connections) if r not in answers}
            ready = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                reason = f"no answer in {timeout_s:.0f} s"
                raise self._failure(when, min(pending.values()), reason)
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = pending[connection]
                try:
                    answer = connection.recv()
                except (EOFError, OSError):
                    raise self._failure(when, rank, "the process died") from None
                if isinstance(answer, Failed):
                    raise self._failure(when, rank, answer.reason)
                answers[rank] = answer
        return [answers[rank] for rank in sorted(answers)]

    def _failure(self, when: str, rank: int, reason: str) -> ContenderError:
        return ContenderError(self.name, when, rank, reason, self._logs[rank])


def combine(turns: Sequence[Turn]) -> Turn:
    """One turn of all ranks: the slowest one's time, the sum of losses and of memory."""
    return Turn(
        seconds=max(turn.seconds for turn in turns),
        losses=tuple(sum(shares) for shares in zip(*(t.losses for t in turns), strict=True)),
        peak_bytes=sum(turn.peak_bytes for turn in turns),
    )


@contextmanager
def crew_of(
    name: str,
    work: Work,
    layout: Layout,
    *,
    cores: Sequence[int],
    folder: Path,
    timeout_s: float,
    seed: int,
    keep_freed_memory: bool = False,
) -> Iterator[Crew]:
    """Start ranks that do ``work``; they are gone at the end, whatever happens.

    One process may use all of its layout's cores; each of several ranks has one for itself.
    """
    world_size, threads = layout.world_size, layout.threads
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    store = folder / f"{name}-store"
    processes: list[BaseProcess] = []
    connections: list[Connection] = []
    logs = [folder / f"{name}-{rank}.log" for rank in range(world_size)]
    crew = Crew(name, processes, connections, logs, timeout_s)
    try:
        for rank in range(world_size):
            ours, theirs = server.Pipe()
            place = Place(
                rank=rank,
                world_size=world_size,
                cores=cores_of(rank, world_size, threads, cores),
                threads=threads,
                store=store,
                log=logs[rank],
                timeout_s=timeout_s,
                seed=seed,
                keep_freed_memory=keep_freed_memory,
            )
            process = server.Process(target=run_rank, args=(theirs, work, place), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            connections.append(ours)
        yield crew
    finally:
        crew.kill()


def cores_of(rank: int, world_size: int, threads: int, cores: Sequence[int]) -> tuple[int, ...]:
    """The cores of one rank: ``threads`` of its own, or all of them where there are too few."""
    if len(cores) < world_size * threads:
        return tuple(cores)
    return tuple(cores[rank * threads : (rank + 1) * threads])


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may run on, by number."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return ()
