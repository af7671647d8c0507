"""One reader of an engine's steps, and from it a stream for each request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from serving.engine.protocol import Engine, EngineFacts, EngineLoad
from serving.errors import EngineDead
from serving.request import Delta, Request

Item = Delta | EngineDead


class Dispatcher:
    """A ``Backend`` over one engine of this process; ``run`` reads it as long as it lives.

    Everything happens on one event loop. When the engine dies every stream ends with what killed
    it, and ``open`` raises it from then on.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queues: dict[str, asyncio.Queue[Item]] = {}
        self._dead: EngineDead | None = None

    @property
    def facts(self) -> EngineFacts:
        return self._engine.facts

    async def run(self) -> None:
        """Hand out what the steps made until the engine is closed or dies; does not raise."""
        try:
            async for deltas in self._engine.steps():
                for delta in deltas:
                    if (queue := self._queues.get(delta.request_id)) is not None:
                        queue.put_nowait(delta)
            self._die(EngineDead("the engine was closed", fix="send the request again"))
        except EngineDead as error:
            self._die(error)
        except Exception as error:  # a bug of an engine: its clients must not hang
            dead = EngineDead("the engine failed", got=f"{type(error).__name__}: {error}")
            dead.__cause__ = error
            self._die(dead)

    async def open(self, request: Request) -> AsyncIterator[Delta]:
        if self._dead is not None:
            raise self._dead
        queue: asyncio.Queue[Item] = asyncio.Queue()
        self._queues[request.request_id] = queue
        try:
            await self._engine.submit(request)
        except BaseException:
            del self._queues[request.request_id]
            raise
        return self._deltas(request, queue)

    async def close(self, request_id: str) -> None:
        if self._queues.pop(request_id, None) is not None:
            await self._engine.cancel(request_id)

    async def prioritise(self, priorities: Mapping[str, int]) -> None:
        await self._engine.prioritise(priorities)

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        return await self._engine.embed(prompts)

    def adapters(self) -> Sequence[str]:
        return [facts.name for facts in self._engine.adapters()]

    async def load_adapter(self, name: str, folder: str) -> None:
        await self._engine.load_adapter(name, folder)

    async def unload_adapter(self, name: str) -> None:
        await self._engine.unload_adapter(name)

    def loads(self) -> Sequence[tuple[str, EngineLoad]]:
        return [("0", self._engine.load())]

    def check(self) -> None:
        if self._dead is not None:
            raise self._dead
        self._engine.check()

    async def _deltas(self, request: Request, queue: asyncio.Queue[Item]) -> AsyncIterator[Delta]:
        left = request.n
        while left:
            item = await queue.get()
            if isinstance(item, EngineDead):
                raise item
            if item.finish is not None:
                left -= 1
                if not left:  # nothing comes after it, so that nothing needs cancelling
                    self._queues.pop(request.request_id, None)
            yield item

    def _die(self, error: EngineDead) -> None:
        self._dead = error
        for queue in self._queues.values():
            queue.put_nowait(error)
        self._queues.clear()
