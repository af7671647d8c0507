"""One worker's part of a run: what a rank does under torchrun, at the place that Ray gave it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread

import psutil

from hecate.checkpoint.agreement import gather
from hecate.checkpoint.folder import saved_steps
from hecate.mesh import MeshConfig, ParallelContext, Rendezvous, open_mesh
from hecate.train.config import RunConfig
from hecate.train.elastic.recoveries import Recovery, record_recovery
from hecate.train.host_memory import keep_freed_memory
from hecate.train.run import Launch, TrainResult, train_on
from hecate.train.stopping import StopRequest
from hecate.train.workers.coordinator import Attempt, Desk, Failure, WorkerStart
from hecate.train.workers.output import log_file, output_into

TELL_S = 0.2  # between words to the coordinator of the step that a run is at


@dataclass(frozen=True)
class Job:
    """What the driver was asked to do, and the folder from which relative paths count."""

    config: RunConfig
    origins: Mapping[str, str]
    resume: str
    started_in: Path

    @property
    def folder(self) -> Path:
        """The run's folder, absolute."""
        return self.started_in / self.config.folder / self.config.name


def work(job: Job, node: str, desk: Desk) -> TrainResult:
    """Train with the other workers of this group; with the driver's stop requests heard.

    ``node``: a name of this node that no other has.
    """
    entered_s = time.time()
    keep_freed_memory()
    if job.started_in.is_dir():
        os.chdir(job.started_in)
    stop = StopRequest()
    Thread(target=_listen, args=(desk, stop), name="stop-requests", daemon=True).start()
    place = replace(Rendezvous.from_environment(os.environ), node=node)
    heading = f"process {os.getpid()}, rank {place.rank} of {place.world_size} on node {node[:8]}"
    with (
        output_into(log_file(job.folder, place.rank), heading),
        open_mesh(_mesh(job.config), place) as ctx,
    ):
        start = _begin(job, ctx, node, desk, entered_s)
        steps = Steps(start, job.folder, desk, clock=time.time) if ctx.rank == 0 else None
        launch = Launch(job.origins, start.resume, start.cause, begins=steps or (lambda step: None))
        return train_on(ctx, job.config, launch, stop)


def _mesh(config: RunConfig) -> MeshConfig:
    """A worker computes on the GPU that it asked Ray for, or on none."""
    if config.mesh.device != "auto":
        return config.mesh
    device = "cuda" if config.ray.gpus_per_worker else "cpu"
    return config.mesh.model_copy(update={"device": device})


def _listen(desk: Desk, stop: StopRequest) -> None:
    if desk.stop_asked():
        stop.ask()


@dataclass(frozen=True)
class Start:
    """How this attempt begins; Unix seconds."""

    attempt: Attempt
    resume: str
    workers: tuple[WorkerStart, ...]
    met_s: float

    @property
    def cause(self) -> str:
        """Why the run is taken up again, if it is."""
        if self.attempt.failure is not None:
            return self.attempt.failure.cause
        return "the cluster has changed" if self.attempt.number > 1 else ""


def _begin(job: Job, ctx: ParallelContext, node: str, desk: Desk, entered_s: float) -> Start:
    """Tell the coordinator of this attempt, and decide what to resume from.

    As the user said, until an attempt saved something: then from the newest checkpoint.
    """
    own = WorkerStart(
        ctx.rank,
        os.getpid(),
        node,
        os.uname().nodename,
        round(psutil.Process().create_time(), 3),
        round(entered_s, 3),
    )
    control = ctx.groups.control
    workers = tuple(gather(control, "the workers of this attempt", own))
    start: Start | None = None
    if ctx.rank == 0:
        step = max(saved_steps(job.folder / "checkpoints"), default=0)
        attempt = desk.begin(step, workers)
        # Of what an attempt on another machine saved, the mirror may know more than this folder.
        elsewhere = job.config.checkpoint.mirror and attempt.number > 1 and job.resume == "none"
        resume = "auto" if step > attempt.first_step or elsewhere else job.resume
        start = Start(attempt, resume, workers, time.time())
    first = gather(control, "how this attempt begins", start)[0]
    assert first is not None
    return first


class Steps:
    """Hears of each step on rank 0: tells the coordinator, and of a failure that is overcome."""

    def __init__(self, start: Start, run: Path, desk: Desk, *, clock: Callable[[], float]) -> None:
        self._start, self._run, self._desk, self._clock = start, run, desk, clock
        self._first = self._told_s = 0.0
        self._first_step = 0

    def __call__(self, step: int) -> None:
        now_s = self._clock()
        if not self._first:
            self._first, self._first_step = now_s, step
        elif step == self._first_step + 1 and self._start.attempt.failure is not None:
            recovery = self._recovery(self._start.attempt.failure, now_s)
            record_recovery(self._run, recovery)
            print(recovery.line(), flush=True)
        if now_s - self._told_s > TELL_S:
            self._desk.at_step(step)
            self._told_s = now_s

    def _recovery(self, failure: Failure, now_s: float) -> Recovery:
        workers = self._start.workers
        born_s = min(worker.born_s for worker in workers)
        entered_s = max(worker.entered_s for worker in workers)
        marks = {
            "leave": born_s,
            "start": entered_s,
            "join": self._start.met_s,
            "prepare": self._first,
            "step": now_s,
        }
        ends = [failure.noticed_s, *marks.values()]
        seconds = {
            name: max(0.0, end - begin)
            for name, begin, end in zip(marks, ends, ends[1:], strict=False)
        }
        return Recovery(
            step=self._first_step,
            time_s=now_s,
            cause=failure.cause,
            at_step=max(failure.at_step, self._first_step),
            ranks_before=failure.workers,
            ranks_after=len(workers),
            seconds=seconds,
        )
