"""Run a serving configuration on Ray until somebody stops it."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import ray
from ray import serve

from hecate.ray_start import start_ray
from serving.api import Prompts
from serving.app.builder import build_app
from serving.app.config import HttpConfig, RayConfig, ServingConfig
from serving.app.listener import shared_socket
from serving.engine.config import EngineConfig
from serving.engine.protocol import Engine
from serving.errors import ServingError

APP = "hecate"
# Ray Serve's own names: calls between replicas by gRPC, and on the one event loop of each. Unless
# told not to, it would then start a proxy at port 8000, which takes half of what comes there, and
# write its log a thousand lines at once, none of which anybody gets to see of a process that died.
LEAN = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
}


def serve_until_stopped(
    config: ServingConfig,
    build_engine: Callable[[EngineConfig], Engine],
    *,
    on_ready: Callable[[str], None],
    stop: threading.Event,
) -> None:
    """Serve ``config``; ``on_ready`` gets the address once the first request would be answered.

    ``build_engine`` is called in replicas, which alone import what computes. It ends when ``stop``
    is set, after what is being answered. Raises ``TokenizerError``, ``ConfigError``, and
    ``ServingError`` for what failed in a replica.
    """
    folder = Path(config.engine.model).expanduser().absolute()
    Prompts.of_folder(folder)  # its error here, not in a log on another machine
    engine = config.engine.model_copy(update={"model": str(folder)})
    # On a cluster the port may be that of the app that this one takes over from.
    http = free_http(config.http) if config.ray.address == "local" else config.http
    kept = config.wandb.model_copy(
        update={"folder": str(Path(config.wandb.folder).expanduser().absolute())}
    )
    applications = config.applications
    if applications.history_file:
        path = str(Path(applications.history_file).expanduser().absolute())
        applications = applications.model_copy(update={"history_file": path})
    config = config.model_copy(
        update={"engine": engine, "http": http, "wandb": kept, "applications": applications}
    )
    app = build_app(config, partial(build_engine, engine), folder)
    cpus = config.replicas.max * config.replicas.num_cpus + config.ingress.num_cpus
    with _ray(config.ray, cpus):
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        if config.ingress_listens:
            serve.start(proxy_location="Disabled")
        else:
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
    if local:
        os.environ.update(LEAN)
    start_ray(
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


def free_http(http: HttpConfig) -> HttpConfig:
    """``http`` with a port that nobody has. Raises ``ServingError`` where somebody does."""
    try:
        with closing(shared_socket(http.host, http.port, alone=True)) as bound:
            return http.model_copy(update={"port": bound.getsockname()[1]})
    except OSError as error:
        raise ServingError(
            f"nothing can listen at {http.host}:{http.port}",
            got=error.strerror or str(error),
            fix="set http.port, or end what has it",
        ) from error


def _failed(error: RuntimeError) -> ServingError:
    messages = [
        f"{name}: {deployment.message}"
        for app in serve.status().applications.values()
        for name, deployment in app.deployments.items()
        if deployment.message
    ]
    return ServingError(
        "the app could not be started",
        got=cause_of("\n".join(messages) or str(error)),
        fix="mend what that names; logs are in /tmp/ray/session_latest/logs/serve",
    )


def cause_of(trace: str) -> str:
    """What was raised, without where: the end of a text with tracebacks, from its last error on."""
    lines = trace.strip().splitlines()
    raised = [at for at, line in enumerate(lines) if re.match(r"[\w.]+: ", line)]
    return "\n".join(lines[raised[-1] if raised else 0 :][-12:])
