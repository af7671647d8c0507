"""One rank of one contender: a process of its own, bound to its cores, for the whole comparison."""

from __future__ import annotations

import os
import random
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from hecate.bench.peers import Contender, Job
from hecate.bench.turns import Failed, Turns, TurnsOver
from hecate.mesh import MeshConfig, Rendezvous, open_mesh
from hecate.train.host_memory import keep_freed_memory


@dataclass(frozen=True)
class Place:
    """Where a rank runs: it meets the others at the file ``store`` and prints into ``log``."""

    rank: int
    world_size: int
    cores: tuple[int, ...]
    threads: int
    store: Path
    log: Path
    timeout_s: float


def run_contender(connection: Connection, train: Contender, job: Job, place: Place) -> None:
    """The main function of a rank's process; ends when ``connection`` closes."""
    _write_to(place.log)
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
        seed(job.seed)
    if job.keep_freed_memory:
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
            train(job, ctx, Turns(connection, time.perf_counter))
    except TurnsOver:
        pass
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [type(error).__name__]
        connection.send(Failed(lines[0]))


def bind(cores: Sequence[int]) -> None:
    """Keep this process, and the threads that it will start, on ``cores``."""
    if hasattr(os, "sched_setaffinity") and cores:
        os.sched_setaffinity(0, cores)


def _write_to(log: Path) -> None:
    """Send what this process and its libraries print to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
