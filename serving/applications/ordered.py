"""The ``Applications`` of an ingress: histories, instances under way, and their queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hecate.errors import StorageError
from serving.api import Answerer, Backend
from serving.applications.calibration import Calibration
from serving.applications.config import ApplicationsConfig
from serving.applications.queue import Queue
from serving.applications.view import graph, instance
from serving.scheduling.applications.book import Book
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.history_file import load, save
from serving.scheduling.applications.order import Order
from serving.scheduling.applications.policies import POLICIES
from serving.scheduling.applications.tags import Tags

LOG = logging.getLogger("serving.applications")

MOST_INSTANCES = 100  # that people are told of


class OrderedApplications:
    """By ``policy``, over all engines of ``backend``. Everything happens on one event loop."""

    def __init__(
        self,
        backend: Backend,
        policy: str,
        config: ApplicationsConfig,
        clock: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._config = config
        self._clock = clock
        self._backend = backend
        self._calibration = Calibration(Rates())
        self._file = Path(config.history_file).expanduser() if config.history_file else None
        self._saved_s = clock()
        self._saving: asyncio.Task[None] | None = None
        self.book = Book(config.history, lambda: self._calibration.rates)
        order = Order(POLICIES[policy](self.book), config.order)
        self._queue = Queue(
            backend, self.book, order, config, lambda: self._calibration.rates, clock
        )
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._file is not None:
            history, rates = await asyncio.to_thread(load, self._file, LOG.warning)
            self.book.restore(history)
            self._calibration = Calibration(rates or Rates())
        self._ticking = asyncio.get_running_loop().create_task(self._tick())

    async def close(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticking
        if self._saving is not None:
            await self._saving
        await self._save()

    def tagged(self, tags: Tags) -> Answerer:
        return self._queue.tagged(tags)

    def unit_began(self, tags: Tags, tenant: str, run: str) -> None:
        now_s = self._clock()
        live = self.book.begin(tags, tenant, now_s)
        self.book.unit_started(live, tags.unit, tags.kind, now_s, run=run)
        self._queue.refresh_soon()

    def unit_ended(self, tags: Tags, tenant: str, run: str, *, failed: bool) -> bool:
        live = self.book.live(tags, tenant)
        if live is None:
            return False
        self._queue.refresh_soon()
        return self.book.unit_ended(live, tags.unit, self._clock(), run=run, failed=failed)

    def end(self, tags: Tags, tenant: str) -> bool:
        live = self.book.live(tags, tenant)
        if live is None:
            return False
        self.book.end(live, self._clock())
        self._queue.refresh_soon()
        return True

    def told(self, tenant: str) -> dict[str, Any]:
        now_s = self._clock()
        asked = self._queue.by_live()
        places = {live: min(each.place for each in of) for live, of in asked.items()}
        positions = {live: at for at, live in enumerate(sorted(places, key=places.__getitem__), 1)}
        lives = [live for live in self.book.lives if live.key.tenant == tenant and live.key.name]
        lives.sort(key=lambda live: positions.get(live, len(positions) + 1))
        return {
            "object": "applications",
            "policy": self._policy,
            "waiting": self._queue.waiting,
            "running": self._queue.running,
            "under_way": len(lives),
            "classes": [
                graph(key.name, history, self._calibration.rates.work_s)
                for key, history in self.book.graphs.items()
                if key.tenant == tenant and len(history)
            ],
            "instances": [
                instance(
                    live,
                    asked.get(live, ()),
                    self.book.prospect(live),
                    positions.get(live),
                    now_s,
                )
                for live in lives[:MOST_INSTANCES]
            ],
        }

    def figures(self) -> Mapping[str, float]:
        return {
            "waiting": self._queue.waiting,
            "running": self._queue.running,
            "instances": len(self.book.lives),
            "classes": len(self.book.graphs),
            "prefill_token_seconds": self._calibration.rates.prefill_token_s,
            "decode_token_seconds": self._calibration.rates.decode_token_s,
            "idled_total": self.book.idled,
            "hung_units_total": self.book.hung,
        }

    async def _save(self) -> None:
        """What cannot be written is said, and tried again the next time."""
        if self._file is None:
            return
        self._saved_s = self._clock()
        try:
            rates = self._calibration.rates
            await asyncio.to_thread(save, self._file, self.book.history(), rates)
        except StorageError as error:
            LOG.warning("what applications did is not kept: %s", error)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._config.tick_s)
            if self._file is not None and self._clock() - self._saved_s >= self._config.save_s:
                if self._saving is None or self._saving.done():
                    self._saving = asyncio.get_running_loop().create_task(self._save())
            try:
                self._calibration.look(self._backend.loads())
                self._queue.tick()
            except Exception:  # requests go on by the ranks that they have
                LOG.exception("ranks could not be refreshed")
