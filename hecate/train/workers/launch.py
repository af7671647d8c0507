"""A run on Ray: from its configuration to its last checkpoint, whatever becomes of its workers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from hecate.errors import ConfigError, HecateError
from hecate.train.config import RunConfig
from hecate.train.run import TrainResult
from hecate.train.stopping import StopRequest
from hecate.train.workers.coordinator import FILE
from hecate.train.workers.output import Follower, log_file
from hecate.train.workers.work import Job, work


def train_on_ray(
    config: RunConfig,
    *,
    origins: Mapping[str, str],
    resume: str,
    address: str = "",
    show: Callable[[str], None] = print,
) -> TrainResult:
    """Train as ``config`` says with ``config.ray.num_workers`` workers of a Ray cluster.

    When workers fail, a new group of them goes on from the newest checkpoint. SIGTERM and SIGUSR1
    to this process end the run with a checkpoint. ``resume`` is as in ``train_on``; ``address`` as
    in ``run_on_cluster``. ``show`` gets what rank 0 prints, and a line for each group of workers
    that begins or fails. Raises what ended the run, one too many failures included.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "Ray is not installed",
            got="--ray",
            expected="the package ray with its extra train",
            fix="pip install 'hecate[ray]'",
        )
    from hecate.train.workers.cluster import run_on_cluster

    if config.mesh.device == "cuda" and not config.ray.gpus_per_worker:
        raise ConfigError(
            "no worker would have a GPU",
            got="mesh.device cuda with ray.gpus_per_worker 0",
            expected="workers that ask Ray for what they use",
            fix="set ray.gpus_per_worker to 1",
        )
    job = Job(config, origins, resume, Path.cwd())
    followers = (
        Follower(job.folder / FILE, lambda line: show(told(line))),
        Follower(log_file(job.folder, 0), show),
    )

    def look() -> None:
        for follower in followers:
            follower.look()

    stop = StopRequest()
    with stop.listening():
        result = run_on_cluster(
            partial(work, job),
            config.ray,
            address=address,
            folder=job.folder,
            timeout_s=config.mesh.timeout_s,
            stop=stop,
            look=look,
        )
    if not isinstance(result, TrainResult):
        raise HecateError("workers ended without a result", got=repr(result))
    return result


def told(line: str) -> str:
    """A line of ``workers.jsonl`` for people."""
    record = json.loads(line)
    if "workers" in record:
        workers = record["workers"]
        nodes = len({worker["node"] for worker in workers})
        return (
            f"attempt {record['attempt']}: {len(workers)} worker{'s' * (len(workers) != 1)} on "
            f"{nodes} node{'s' * (nodes != 1)}, from step {record['step']}"
        )
    failed = "; ".join(f"rank {rank}: {words}" for rank, words in record["ranks"].items())
    return f"attempt {record['attempt']} failed. {failed}"
