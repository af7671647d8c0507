"""The deployment that keeps what replicas tell of themselves, in Weights & Biases.

One for all replicas, so that they are one run with a curve each. Nothing waits for it, and whatever
ails it or its disk, requests are answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hecate.logging import LoggingConfig, OpenSink, Run, open_sinks
from serving.app.config import WandbConfig
from serving.app.figures import Reading, charts
from serving.app.latency import Latency
from serving.app.logs import log_to_serve
from serving.engine.protocol import Engine
from serving.request import Delta

LOG = logging.getLogger("serving.app")

SILENT_PERIODS = 3  # after which a replica counts as gone


class RecorderReplica:
    """A ``Recorder`` as Ray Serve runs it."""

    async def __init__(self, *given: Any) -> None:  # type: ignore[misc]
        log_to_serve()
        self._recorder = Recorder(*given)

    async def hear(self, reading: Reading) -> None:
        self._recorder.hear(reading)

    async def __del__(self) -> None:
        if hasattr(self, "_recorder"):
            await self._recorder.close()


class Recorder:
    """Lives on one event loop. ``settings``: the app's configuration, kept with the run."""

    def __init__(self, config: WandbConfig, name: str, settings: dict[str, Any]) -> None:
        self._every_s = config.every_s
        self._heard: dict[str, tuple[float, Reading]] = {}
        self._sink: OpenSink | None = None
        self._opening = (config, name, settings)
        self._writing = asyncio.ensure_future(self._write())

    def hear(self, reading: Reading) -> None:
        """The latest of a replica is what the next row has of it."""
        self._heard[reading.replica] = time.monotonic(), reading

    async def close(self) -> None:
        self._writing.cancel()
        if self._sink is not None:
            await asyncio.to_thread(self._sink.close)

    async def _write(self) -> None:
        try:
            # Beside what else starts: a server of Weights & Biases may not answer for a minute.
            self._sink = await asyncio.to_thread(opened, *self._opening)
            if self._sink is not None:
                await self._log(self._sink)
        except Exception as error:  # its folder cannot be written, or its own process is gone
            LOG.warning("serving goes on without Weights & Biases: %s", error)

    async def _log(self, sink: OpenSink) -> None:
        begun_s = time.monotonic()
        before: dict[str, Reading] = {}
        while True:
            await asyncio.sleep(self._every_s)
            now_s = time.monotonic()
            now = {
                name: reading
                for name, (at_s, reading) in self._heard.items()
                if now_s - at_s < SILENT_PERIODS * self._every_s
            }
            if now or before:
                await asyncio.to_thread(sink.log, round(now_s - begun_s), charts(before, now))
            before = now


class Telling:
    """A replica's side: times its requests, and tells ``recorder`` every ``every_s``."""

    def __init__(
        self,
        replica: str,
        engine: Engine,
        recorder: Any,
        every_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._replica = replica
        self._engine = engine
        self._recorder = recorder
        self._every_s = every_s
        self._clock = clock
        self._latency = Latency()

    def begin(self, request_id: str) -> None:
        self._latency.begin(request_id, self._clock())

    def take(self, delta: Delta) -> None:
        self._latency.take(delta, self._clock())

    def end(self, request_id: str) -> None:
        self._latency.end(request_id)

    async def run(self) -> None:
        """For as long as the replica lives."""
        while True:
            reading = Reading(
                self._replica, self._clock(), self._engine.load(), self._latency.totals
            )
            try:
                await asyncio.wait_for(self._recorder.hear.remote(reading), self._every_s)
            except Exception as error:  # whatever ails the recorder is no reason to end
                LOG.debug("the recorder does not hear: %s", error)
            await asyncio.sleep(self._every_s)


def opened(config: WandbConfig, name: str, settings: dict[str, Any]) -> OpenSink | None:
    """None where wandb is not installed, which is said. Raises what cannot be begun."""
    assert config.mode != "off", "without a mode there is no recorder"
    logging_config = LoggingConfig(
        sinks=("wandb",), wandb_mode=config.mode, wandb_project=config.project
    )
    run = Run(Path(config.folder), name, total_steps=0, settings=settings)
    return next(iter(open_sinks(logging_config, run, rank=0)), None)
