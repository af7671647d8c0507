"""One rank of a crew: a process of its own, bound to its cores, for the whole comparison."""

from __future__ import annotations

import os
import random
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from hecate.bench.peers import Contender, Job
from hecate.bench.turns import Failed, Turns, TurnsOver
from hecate.mesh import MeshConfig, ParallelContext, Rendezvous, open_mesh
from hecate.train.host_memory import keep_freed_memory

Answer = TypeVar("Answer", covariant=True)

Work = Callable[[ParallelContext, Connection], None]
"""What a rank does: it answers what comes through the connection, until that is closed."""


@dataclass(frozen=True)
class Place:
    """Where a rank runs: it meets the others at the file ``store`` and prints into ``log``.

    ``keep_freed_memory``: whether it begins with the trainer's malloc settings.
    """

    rank: int
    world_size: int
    cores: tuple[int, ...]
    threads: int
    store: Path
    log: Path
    timeout_s: float
    seed: int
    keep_freed_memory: bool


def run_rank(connection: Connection, work: Work, place: Place) -> None:
    """The main function of a rank's process; ends with its work."""
    write_to(place.log)
    bind(place.cores)
    # Libraries read these: torchrun would set them, and accelerate sets threads where it sees none.
    os.environ["OMP_NUM_THREADS"] = str(place.threads)
    if place.world_size > 1:
        os.environ.update(
            RANK=str(place.rank),
            LOCAL_RANK=str(place.rank),
            WORLD_SIZE=str(place.world_size),
            LOCAL_WORLD_SIZE=str(place.world_size),
            MASTER_ADDR="127.0.0.1",
        )
    torch.set_num_threads(place.threads)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(place.seed)
    if place.keep_freed_memory:
        keep_freed_memory()
    rendezvous = Rendezvous(
        place.rank,
        place.world_size,
        place.rank,
        dist.FileStore(str(place.store), place.world_size),  # type: ignore[attr-defined]
    )
    try:
        mesh = MeshConfig(device="cpu", timeout_s=place.timeout_s)
        with open_mesh(mesh, rendezvous) as ctx:
            work(ctx, connection)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [type(error).__name__]
        connection.send(Failed(lines[0]))


def take_turns(train: Contender, job: Job, ctx: ParallelContext, connection: Connection) -> None:
    """Let a contender train whenever it is asked to."""
    with suppress(TurnsOver):
        train(job, ctx, Turns(connection, time.perf_counter))


class Task(Protocol[Answer]):
    """Something for every rank of a crew to do at once; it and its answer are sent by pickle."""

    def __call__(self, ctx: ParallelContext) -> Answer: ...


def do_tasks(ctx: ParallelContext, connection: Connection) -> None:
    """Do what arrives, ``Task`` after ``Task``, and send back what each returns."""
    with suppress(EOFError):
        while True:
            task: Task[object] = connection.recv()
            connection.send(task(ctx))


def bind(cores: Sequence[int]) -> None:
    """Keep this process, and the threads that it will start, on ``cores``."""
    if hasattr(os, "sched_setaffinity") and cores:
        os.sched_setaffinity(0, cores)


def write_to(log: Path) -> None:
    """Send what this process and its libraries print to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
