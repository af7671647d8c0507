"""A task on every worker of a Ray cluster; the one file here that uses Ray.

Ray Train places the workers, forms their default process group, watches them, and starts a group of
them again when one dies, raises or loses its node. The task and what it works on travel as bytes
that only the workers read, so that Ray's own processes need not import torch for them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hecate.errors import CollectiveFailure, ConfigError, HecateError, MeshError
from hecate.ray_start import start_ray
from hecate.train.workers.config import RayConfig
from hecate.train.workers.coordinator import Attempt, Coordinator, Desk, WorkerStart
from hecate.train.workers.failures import FailureCount, first_words

LOOK_S = 0.3  # how often the driver looks for a stop request and for new lines
WITHOUT_ANSWER_S = 60  # a worker whose process does not answer for so long is lost
SHUTDOWN_S = 3  # for a broken group to close itself before its workers are killed


def run_on_cluster(
    task: Callable[[str, Desk], Any],
    config: RayConfig,
    *,
    address: str,
    folder: Path,
    timeout_s: float,
    stop: Callable[[], bool],
    look: Callable[[], None],
) -> Any:
    """Run ``task`` on the workers that ``config`` asks for; what it returned on rank 0.

    It gets the name of its node and the coordinator; RANK, WORLD_SIZE and LOCAL_RANK are in its
    environment, as under torchrun.

    ``address``: of a cluster that runs; "" takes that of RAY_ADDRESS (which ``ray job submit``
    sets), or starts one on this machine. ``folder``: of the run, for Ray Train's notes and the
    coordinator's. ``timeout_s``: of each collective. ``stop`` says whether to end early; ``look``
    is called every now and then. Raises what ended the run.
    """
    with _connected(config, address):
        here = ray.get_runtime_context().get_node_id()
        coordinator = (
            ray.remote(num_cpus=0)(Coordinator)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False))
            .remote(str(folder))
        )
        desk = _RemoteDesk(coordinator)
        trainer = TorchTrainer(
            partial(_on_worker, pickle.dumps(task), desk),
            scaling_config=_scaling(config),
            run_config=RunConfig(
                name="ray",
                storage_path=str(folder),
                # Which failures end the run is for the callback to say.
                failure_config=FailureConfig(max_failures=-1),
                callbacks=[_OnFailure(desk, FailureCount(config.max_failures))],
            ),
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if config.gpus_per_worker else "gloo",
                timeout_s=int(timeout_s),
            ),
        )
        return _watched(lambda: _fit(trainer), desk, stop, look)


def _on_worker(task: bytes, desk: Desk) -> Any:
    return pickle.loads(task)(ray.get_runtime_context().get_node_id(), desk)


class _RemoteDesk:
    """The coordinator's methods, from any process of the cluster."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, step: int, workers: Sequence[WorkerStart]) -> Attempt:
        attempt: Attempt = ray.get(self._actor.begin.remote(step, workers))
        return attempt

    def at_step(self, step: int) -> None:
        self._actor.at_step.remote(step)

    def failed(self, ranks: Mapping[int, str]) -> int:
        return int(ray.get(self._actor.failed.remote(ranks)))

    def ask_to_stop(self) -> None:
        ray.get(self._actor.ask_to_stop.remote())

    def stop_asked(self) -> bool:
        try:
            return bool(ray.get(self._actor.stop_asked.remote()))
        except RayActorError:  # the driver is gone, and the workers go with it
            return False


class _OnFailure(UserCallback):  # type: ignore[misc]
    """In Ray Train's controller: writes failures down, and ends the run at one too many."""

    def __init__(self, desk: Desk, failures: FailureCount) -> None:
        self._desk, self._failures = desk, failures

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = {
            rank: getattr(error, "health_check_failure", error)
            for rank, error in sorted(worker_exceptions.items())
        }
        own = _of_themselves(causes)
        step = self._desk.failed({rank: first_words(cause) for rank, cause in own.items()})
        error = self._failures.after(step, own)
        if error is not None:
            raise error


def _of_themselves(causes: Mapping[int, Exception]) -> dict[int, Exception]:
    """The ranks that died or failed of themselves; all, where each failed because of another."""
    own = {rank: e for rank, e in causes.items() if not isinstance(e, CollectiveFailure)}
    return own or dict(causes)


def _scaling(config: RayConfig) -> ScalingConfig:
    elastic = 0 < config.min_workers < config.num_workers
    return ScalingConfig(
        num_workers=(config.min_workers, config.num_workers) if elastic else config.num_workers,
        use_gpu=bool(config.gpus_per_worker),
        resources_per_worker=config.resources_per_worker,
        placement_strategy=config.placement,
        elastic_resize_monitor_interval_s=config.resize_every_s,
    )


def _fit(trainer: TorchTrainer) -> Any:
    try:
        return trainer.fit().return_value
    except ray.train.ControllerError as error:
        if isinstance(error.controller_failure, HecateError):
            raise error.controller_failure from None
        raise HecateError(
            "Ray Train gave up",
            got=first_words(error.controller_failure),
            fix="see the controller's log in Ray's session folder",
        ) from error
    except RayActorError as error:
        raise HecateError(
            "Ray Train's controller died", got=first_words(error), fix="continue with --resume auto"
        ) from error


@contextlib.contextmanager
def _connected(config: RayConfig, address: str) -> Iterator[None]:
    """With a cluster: the one at ``address``, or one of this run's own that ends with it."""
    if address.startswith("ray://"):
        raise ConfigError(
            "training needs a driver in the cluster",
            got=f"--ray-address {address}, which is for clients outside",
            expected="host:port of the cluster, or auto on one of its nodes",
            fix="submit it: ray job submit --address http://HEAD:8265 -- hecate train CONFIG --ray",
        )
    settings: dict[str, Any] = {
        "log_to_driver": False,  # workers' output comes by way of the run's folder
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": _environment(config)},
    }
    if address or "RAY_ADDRESS" in os.environ:
        settings["address"] = address or None
    else:
        workers = config.num_workers
        settings |= {
            "address": "local",  # never one that happens to run on this machine
            "num_cpus": workers * config.cpus_per_worker,
            "num_gpus": None if config.gpus_per_worker else 0,
            "resources": {name: each * workers for name, each in config.resources.items()},
            "object_store_memory": config.object_store_bytes,
            "include_dashboard": False,
            # Ray's default lets its workers run behind everything else on the machine.
            "_system_config": {"worker_niceness": 0},
        }
    try:
        start_ray(**settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise MeshError(
            f"no Ray cluster at {address or os.environ.get('RAY_ADDRESS', 'this machine')}",
            got=first_words(error),
            expected="a cluster that answers",
            fix="start one (ray start --head), or leave --ray-address out to have one started",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _environment(config: RayConfig) -> dict[str, str]:
    """What Ray Train's controller and workers read from their environment."""
    return {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(config.poll_s),
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(WITHOUT_ANSWER_S),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(config.start_timeout_s),
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": str(SHUTDOWN_S),
    }


def _watched(
    fit: Callable[[], Any], desk: Desk, stop: Callable[[], bool], look: Callable[[], None]
) -> Any:
    """What ``fit`` returns; meanwhile, pass a stop request on, and look.

    Python hears no signals while its main thread waits inside Ray, so another one does that.
    """
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(fit())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="ray-train", daemon=True).start()
    told = False
    while not wait([future], LOOK_S).done:
        look()
        if stop() and not told:
            desk.ask_to_stop()
            told = True
    look()
    return future.result()
