"""One HTTP request answered: its prompts opened, their deltas through the one state machine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from serving.api.answers import Answers, Piece, best, whole
from serving.api.backend import Answerer
from serving.api.metrics import Metrics
from serving.api.rendering import Rendering
from serving.api.tenants import Clock, Tenants
from serving.request import Delta, Request

LOG = logging.getLogger("serving.api")

Numbered = tuple[int, Delta]


class Answering:
    """The requests of one HTTP request, and all that is counted of them.

    Whatever ends it, the client's leaving among it, nothing of it goes on in the backend. ``keep``:
    of each prompt's answers, so many of the likeliest, where it is given at once.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        rendering: Rendering,
        *,
        with_tools: bool,
        keep: int,
        backend: Answerer,
        tenants: Tenants,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._requests = requests
        self._rendering = rendering
        self._keep = keep
        self._answers = Answers(len(requests), requests[0].n, with_tools=with_tools)
        self._backend = backend
        self._tenants = tenants
        self._metrics = metrics
        self._clock = clock

    async def whole(self) -> dict[str, Any]:
        """The answer at once."""
        pieces = [piece async for piece in self._pieces()]
        choices = best(whole(pieces), of=self._requests[0].n, keep=self._keep)
        return self._rendering.whole(choices, self._answers.usage)

    async def chunks(self, *, include_usage: bool) -> AsyncIterator[dict[str, Any]]:
        """The answer in chunks; with ``include_usage`` the last one has the usage alone."""
        pieces = self._pieces()
        try:
            async for piece in pieces:
                chunk = self._rendering.chunk(piece)
                if include_usage:
                    chunk["usage"] = None
                yield chunk
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]  # an async generator
        if include_usage:
            yield self._rendering.usage_chunk(self._answers.usage)

    async def _pieces(self) -> AsyncIterator[Piece]:
        begun_s = self._clock()
        first_s = last_s = 0.0
        end = "error"
        tenant = self._requests[0].tenant
        self._tenants.admit(tenant, sum(len(request.prompt) for request in self._requests))
        try:
            async with opened(self._backend, self._requests) as deltas:
                async for prompt_index, delta in deltas:
                    if delta.tokens:
                        last_s = self._clock()
                        first_s = first_s or last_s
                    if (piece := self._answers.take(prompt_index, delta)) is not None:
                        yield piece
            end = "done"
        except (asyncio.CancelledError, GeneratorExit):
            end = "client gone"
            raise
        finally:
            usage = self._answers.usage
            self._tenants.charge(tenant, usage.generated)
            if first_s:
                self._metrics.first_token_s.observe(first_s - begun_s)
            if usage.generated > 1 and end == "done":
                self._metrics.token_s.observe((last_s - first_s) / (usage.generated - 1))
            self._metrics.request_s.observe(self._clock() - begun_s)
            LOG.info(
                "%s tenant=%s prompt=%d cached=%d generated=%d %s",
                *(self._requests[0].request_id, tenant or "-"),
                *(usage.prompt, usage.cached, usage.generated, end),
            )


@asynccontextmanager
async def opened(
    backend: Answerer, requests: Sequence[Request]
) -> AsyncIterator[AsyncIterator[Numbered]]:
    """Deltas of all ``requests`` as they come, each with its request's place; closed in the end."""
    tried: list[str] = []
    merged: AsyncIterator[Numbered] | None = None
    try:
        streams = []
        for request in requests:
            tried.append(request.request_id)
            streams.append(await backend.open(request))
        merged = _numbered(0, streams[0]) if len(streams) == 1 else _merged(streams)
        yield merged
    finally:
        if merged is not None:
            await merged.aclose()  # type: ignore[attr-defined]  # an async generator
        # Shielded: who is cancelled here still frees what the engine holds.
        await asyncio.shield(asyncio.gather(*(backend.close(name) for name in tried)))


async def _numbered(place: int, stream: AsyncIterator[Delta]) -> AsyncIterator[Numbered]:
    async for delta in stream:
        yield place, delta


async def _merged(streams: Sequence[AsyncIterator[Delta]]) -> AsyncIterator[Numbered]:
    queue: asyncio.Queue[Numbered | Exception | None] = asyncio.Queue()

    async def pour(place: int, stream: AsyncIterator[Delta]) -> None:
        try:
            async for delta in stream:
                queue.put_nowait((place, delta))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.ensure_future(pour(at, stream)) for at, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
