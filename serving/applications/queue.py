"""Requests on their way: each waits for its turn, is answered, and is learnt from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from serving.api import Answerer, Backend
from serving.applications.config import ApplicationsConfig
from serving.applications.release import Asked, level, may_go, turn
from serving.errors import Overloaded
from serving.request import Delta, Finish, Request
from serving.scheduling.applications.book import Book
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.live import Ask, Live
from serving.scheduling.applications.order import LEAST_S, Order
from serving.scheduling.applications.tags import Tags
from serving.scheduling.costs import Rate

ASSUMED_TOKENS = 256.0  # of a request, prompt and answer, until some have ended
REFRESH_S = 0.01  # between two refreshes of all ranks at least, however many units end


class Queue:
    """Before ``backend``: what its engines have places for goes there in ``order``, and the rest
    waits here, since who waits in an engine can be answered by no other one.

    Ranks are refreshed by ``tick`` and soon after each end of a call or tool; they follow requests
    into engines.
    """

    def __init__(
        self,
        backend: Backend,
        book: Book,
        order: Order,
        config: ApplicationsConfig,
        rates: Callable[[], Rates],
        clock: Callable[[], float],
    ) -> None:
        """``rates``: what tokens cost now."""
        self._backend = backend
        self._book = book
        self._order = order
        self._config = config
        self._rates = rates
        self._clock = clock
        self._asked: dict[str, Asked] = {}
        self._turns: dict[Asked, asyncio.Future[None]] = {}
        self._running: dict[Asked, None] = {}
        self._number = 0
        self._full = False  # an engine had no place where one was expected, and none ended since
        self._refreshed_s = 0.0
        self._refreshing: asyncio.TimerHandle | None = None
        self._telling: set[asyncio.Task[None]] = set()
        self._between_ends_s = Rate(1.0)
        self._tokens = Rate(ASSUMED_TOKENS)
        self._ended_s = clock()

    def tagged(self, tags: Tags) -> Answerer:
        """Answers requests that have ``tags``."""
        return _Tagged(self, tags)

    @property
    def waiting(self) -> int:
        return len(self._turns)

    @property
    def running(self) -> int:
        return len(self._running)

    def by_live(self) -> dict[Live, list[Asked]]:
        """Requests that wait or are being answered, of each instance that has any."""
        found: dict[Live, list[Asked]] = {}
        for asked in self._asked.values():
            found.setdefault(asked.live, []).append(asked)
        return found

    async def open(self, request: Request, tags: Tags) -> AsyncIterator[Delta]:
        asked = self._begin(request, tags)
        try:
            deltas = await self._admitted(asked)
        except BaseException:
            self._end(asked, failed=True)
            raise
        return self._answered(asked, deltas)

    async def close(self, request_id: str) -> None:
        await self._backend.close(request_id)
        asked = self._asked.get(request_id)
        if asked is not None:
            self._end(asked, failed=True)

    def tick(self) -> None:
        """Everything anew, as it is now."""
        self._full = False
        self._book.tick(self._clock())
        self._refresh()

    def refresh_soon(self) -> None:
        """An instance has shown more."""
        if self._refreshing is None:
            wait_s = max(0.0, self._refreshed_s + REFRESH_S - self._clock())
            self._refreshing = asyncio.get_running_loop().call_later(wait_s, self._refresh)

    def _begin(self, request: Request, tags: Tags) -> Asked:
        most = self._config.max_waiting * self._replicas
        if len(self._turns) >= most:
            raise Overloaded(
                "too many requests are waiting",
                got=f"{len(self._turns)} that wait",
                fix="try again later",
                retry_after_s=max(1.0, len(self._turns) * self._between_ends_s.each / 2),
            )
        now_s = self._clock()
        live = self._book.begin(tags, request.tenant, now_s)
        prompt_tokens = len(request.prompt)
        self._book.call_started(live, tags.unit, request.request_id, prompt_tokens, now_s)
        self._number += 1
        most_tokens = request.n * request.sampling.max_tokens
        ask = Ask(request.request_id, self._number, now_s, prompt_tokens, most_tokens)
        asked = Asked(request, live, ask, self._order.place(live, ask, now_s))
        asked.level = self._level(asked, None)
        self._asked[request.request_id] = asked
        return asked

    async def _admitted(self, asked: Asked) -> AsyncIterator[Delta]:
        """Its deltas, once it had its turn and an engine took it."""
        while True:
            await self._turn(asked)
            try:
                return await self._backend.open(replace(asked.request, priority=asked.level))
            except Overloaded:
                del self._running[asked]
                if not self._running:
                    raise
                self._full = True

    async def _turn(self, asked: Asked) -> None:
        turn_comes = asyncio.get_running_loop().create_future()
        self._turns[asked] = turn_comes
        try:
            self._release()
            await turn_comes
        finally:
            self._turns.pop(asked, None)

    def _release(self) -> None:
        """Give turns for as long as engines have places."""
        places = self._replicas * (self._backend.facts.max_sequences + self._config.ahead)
        while self._turns and not self._full:
            asked = turn(self._turns)
            if not may_go(asked, self._running, places, self._order, self._back_s):
                return
            self._running[asked] = None
            turn_comes = self._turns.pop(asked)
            if not turn_comes.done():
                turn_comes.set_result(None)

    async def _answered(self, asked: Asked, deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
        failed = True
        try:
            async for delta in deltas:
                self._served(asked, delta)
                if len(asked.ended) == asked.request.n:
                    failed = delta.finish in (Finish.FAILED, Finish.CANCELLED)
                    self._end(asked, failed=failed)
                yield delta
        finally:
            self._end(asked, failed=failed)

    def _served(self, asked: Asked, delta: Delta) -> None:
        prompt = 0
        if not asked.generated and delta.usage.generated:
            asked.cached = delta.usage.cached
            prompt = delta.usage.prompt - delta.usage.cached
        output = delta.usage.generated - asked.generated
        asked.generated = max(asked.generated, delta.usage.generated)
        if prompt or output > 0:
            before_s = asked.live.attained_s
            self._book.served(asked.live, asked.request.request_id, prompt, output)
            cost_s = asked.live.attained_s - before_s
            self._order.served(asked.live, prompt, output, cost_s)
        if delta.finish is not None:
            asked.ended.add(delta.index)

    def _end(self, asked: Asked, *, failed: bool) -> None:
        """It is answered, or will not be; harmless when called twice."""
        if self._asked.get(asked.request.request_id) is not asked:
            return
        del self._asked[asked.request.request_id]
        self._running.pop(asked, None)
        now_s = self._clock()
        self._book.call_ended(
            asked.live,
            asked.request.request_id,
            now_s,
            output_tokens=asked.generated,
            cached_tokens=asked.cached,
            failed=failed,
        )
        self._tokens.add(asked.ask.prompt_tokens + asked.generated, 1)
        self._between_ends_s.add(max(0.0, now_s - self._ended_s), 1)
        self._ended_s = now_s
        self._full = False
        self._release()
        self.refresh_soon()

    def _refresh(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            self._refreshing = None
        now_s = self._refreshed_s = self._clock()
        self._order.tick(self._book.lives, now_s)
        changed: dict[str, int] = {}
        for asked in self._asked.values():
            asked.place = self._order.place(asked.live, asked.ask, now_s)
            before, asked.level = asked.level, self._level(asked, asked.level)
            if asked in self._running and asked.level != before:
                changed[asked.request.request_id] = asked.level
        self._release()
        if changed:
            telling = asyncio.ensure_future(self._backend.prioritise(changed))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)

    def _level(self, asked: Asked, before: int | None) -> int:
        return level(asked.place, before, self._order, self._back_s)

    @property
    def _back_s(self) -> float:
        """What it costs to compute once more what a request has had, on average."""
        return max(LEAST_S, self._rates().prefill_token_s * self._tokens.each)

    @property
    def _replicas(self) -> int:
        return max(1, len(self._backend.loads()))


class _Tagged:
    def __init__(self, queue: Queue, tags: Tags) -> None:
        self._queue = queue
        self._tags = tags

    async def open(self, request: Request) -> AsyncIterator[Delta]:
        return await self._queue.open(request, self._tags)

    async def close(self, request_id: str) -> None:
        await self._queue.close(request_id)
