"""One worker's part of a run: what a rank does under torchrun, at the place that Ray gave it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread

import psutil

from hecate.checkpoint.agreement import gather
from hecate.checkpoint.folder import saved_steps
from hecate.mesh import MeshConfig, ParallelContext, Rendezvous, open_mesh
from hecate.train.config import RunConfig
from hecate.train.host_memory import keep_freed_memory
from hecate.train.run import TrainResult, train_on
from hecate.train.stopping import StopRequest
from hecate.train.workers.coordinator import Desk, WorkerStart
from hecate.train.workers.output import log_file, output_into


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
        resume = _begin(job, ctx, node, desk, entered_s)
        return train_on(ctx, job.config, origins=job.origins, resume=resume, stop=stop)


def _mesh(config: RunConfig) -> MeshConfig:
    """A worker computes on the GPU that it asked Ray for, or on none."""
    if config.mesh.device != "auto":
        return config.mesh
    device = "cuda" if config.ray.gpus_per_worker else "cpu"
    return config.mesh.model_copy(update={"device": device})


def _listen(desk: Desk, stop: StopRequest) -> None:
    if desk.stop_asked():
        stop.ask()


def _begin(job: Job, ctx: ParallelContext, node: str, desk: Desk, entered_s: float) -> str:
    """Tell the coordinator of this attempt; what to resume from.

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
    workers = gather(control, "the workers of this attempt", own)
    resume = job.resume
    if ctx.rank == 0:
        step = max(saved_steps(job.folder / "checkpoints"), default=0)
        attempt = desk.begin(step, workers)
        # Of what an attempt on another machine saved, the mirror may know more than this folder.
        elsewhere = job.config.checkpoint.mirror and attempt.number > 1 and resume == "none"
        if step > attempt.first_step or elsewhere:
            resume = "auto"
    return gather(control, "what to resume from", resume)[0]
