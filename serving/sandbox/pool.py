"""Interpreters that are ready before somebody has a program for them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from serving.errors import Overloaded
from serving.sandbox.config import SandboxConfig
from serving.sandbox.protocol import Outcome, Program, Starter
from serving.sandbox.session import Session, open_session

_LOG = logging.getLogger(__name__)
_AGAIN_S = 1.0  # after one that did not start


class SandboxPool:
    """Up to ``config.most`` interpreters, of which ``ready`` ones wait for a program.

    ``prepare`` says how many are to wait, ``config.spare`` at least; who comes when none does waits
    for one that is started for it. Each runs one program and is gone.
    """

    def __init__(self, config: SandboxConfig, starter: Starter, clock: Callable[[], float]) -> None:
        self._config = config
        self._starter = starter
        self._clock = clock
        self._ready: deque[Session] = deque()
        self._waiting: deque[asyncio.Future[Session]] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._running = 0
        self._wanted = config.spare
        self._closed = False
        self.start_s = 0.0  # what starting took, of late
        self.runs_total = self.warm_total = self.starts_total = self.timeouts_total = 0

    @property
    def ready(self) -> int:
        return len(self._ready)

    @property
    def running(self) -> int:
        return self._running

    def prepare(self, count: int) -> None:
        """Have ``count`` ready from now on; those beyond are ended."""
        self._wanted = min(max(count, self._config.spare), self._config.most)
        while len(self._ready) > self._wanted:
            self._end(self._ready.pop())
        self._start()

    async def run(self, program: Program) -> Outcome:
        """What comes of ``program``.

        Raises ``Overloaded`` where as many wait already as there may be, ``OSError`` where no
        interpreter can be started.
        """
        if self._closed or len(self._waiting) >= 4 * self._config.most:
            raise Overloaded(
                "too many programs wait for a sandbox",
                got=f"{len(self._waiting)} waiting, {self._running} running",
                fix="try again later, or raise applications.sandboxes.most",
                retry_after_s=1.0,
            )
        begun_s = self._clock()
        warm = any(session.alive for session in self._ready)
        session = await self._take()
        waited_s = self._clock() - begun_s
        self._running += 1
        self.runs_total += 1
        self.warm_total += warm
        try:
            outcome = await session.run(program)
        finally:
            self._running -= 1
            self._start()
        self.timeouts_total += outcome.timed_out
        return replace(outcome, waited_s=waited_s)

    async def close(self) -> None:
        """End all that are ready; programs that run go on to their end."""
        self._closed = True
        self._wanted = 0
        for task in self._opening:
            task.cancel()
        for future in self._waiting:
            future.cancel()
        while self._ready:
            self._end(self._ready.pop())
        while left := self._opening | self._ending:
            await asyncio.gather(*left, return_exceptions=True)

    async def _take(self) -> Session:
        while self._ready:
            session = self._ready.popleft()
            if session.alive:
                self._start()
                return session
            self._end(session)
        future: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._start()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                self._ready.append(future.result())  # it came as its user went
            raise
        finally:
            with suppress(ValueError):
                self._waiting.remove(future)

    def _start(self) -> None:
        """As many as are missing and have a place."""
        if self._closed:
            return
        missing = self._wanted + len(self._waiting) - len(self._ready) - len(self._opening)
        places = self._config.most - len(self._ready) - len(self._opening) - self._running
        for _ in range(min(missing, places)):
            task = asyncio.ensure_future(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        self._start()

    async def _open(self) -> None:
        begun_s = self._clock()
        self.starts_total += 1
        try:
            session = await open_session(self._starter, self._config)
        except OSError as error:
            _LOG.warning("no sandbox: %s", error)
            if (future := self._first_waiting()) is not None:
                future.set_exception(error)
            else:
                await asyncio.sleep(_AGAIN_S)
            return
        took_s = self._clock() - begun_s
        self.start_s += (took_s - self.start_s) * (0.2 if self.start_s else 1.0)
        if (future := self._first_waiting()) is not None:
            future.set_result(session)
        else:
            self._ready.append(session)

    def _first_waiting(self) -> asyncio.Future[Session] | None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                return future
        return None

    def _end(self, session: Session) -> None:
        task = asyncio.ensure_future(session.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
