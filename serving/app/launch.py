"""Run a serving configuration on Ray until somebody stops it."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import ray
from ray import serve

from serving.api import Prompts
from serving.app.builder import build_app
from serving.app.config import RayConfig, ServingConfig
from serving.engine.build import build_engine
from serving.errors import ServingError

APP = "hecate"


def serve_until_stopped(
    config: ServingConfig, *, on_ready: Callable[[str], None], stop: threading.Event
) -> None:
    """Serve ``config``; ``on_ready`` gets the address once the first request would be answered.

    It ends when ``stop`` is set, after what is being answered. Raises ``TokenizerError``,
    ``ConfigError``, and ``ServingError`` for what failed in a replica.
    """
    folder = Path(config.engine.model).expanduser().absolute()
    Prompts.of_folder(folder)  # its error here, not in a log on another machine
    engine = config.engine.model_copy(update={"model": str(folder)})
    app = build_app(config, partial(build_engine, engine), folder)
    cpus = config.replicas.max * config.replicas.num_cpus + config.ingress.num_cpus
    with _ray(config.ray, cpus):
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        http = config.http
        serve.start(http_options={"host": http.host, "port": http.port})
        try:
            serve.run(app, name=APP)
        except RuntimeError as error:
            raise _failed(error) from error
        on_ready(f"http://{http.host}:{http.port}")
        stop.wait()


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C interrupts."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ray(config: RayConfig, cpus: float) -> Iterator[None]:
    """Ray of this machine alone, ended with us, or a cluster, in which only our app is ended."""
    local = config.address == "local"
    more = {
        "num_cpus": max(os.cpu_count() or 1, math.ceil(cpus)),
        "object_store_memory": config.object_store_mib << 20,
        "include_dashboard": False,
        # Ray's own 15 is for batch work: whatever else the machine does would go before answers.
        "_system_config": {"worker_niceness": 0},
    }
    ray.init(
        address=config.address,
        log_to_driver=False,
        logging_level="error",
        **(more if local else {}),
    )
    try:
        yield
    finally:
        serve.delete(APP)
        ray.shutdown()


def _failed(error: RuntimeError) -> ServingError:
    messages = [
        f"{name}: {deployment.message}"
        for app in serve.status().applications.values()
        for name, deployment in app.deployments.items()
        if deployment.message
    ]
    lines = "\n".join(messages).strip().splitlines()
    return ServingError(
        "the app could not be started",
        got="\n".join(lines[-12:]) or str(error),
        fix="mend what the last line names; logs are in /tmp/ray/session_latest/logs/serve",
    )
