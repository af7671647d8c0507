"""What the routes need of whatever answers: an engine in this process, or many behind a router."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from serving.engine.protocol import EngineFacts, EngineLoad
from serving.request import Delta, Request


class Answerer(Protocol):
    """Answers requests, each by a stream of its own."""

    async def open(self, request: Request) -> AsyncIterator[Delta]:
        """Admit ``request`` and give its deltas; to stop earlier, ``close`` it.

        Raises what ``Engine.submit`` does; the iterator raises ``EngineDead``.
        """
        ...

    async def close(self, request_id: str) -> None:
        """Cancel what is left of a request; harmless for one that has ended."""
        ...


class Backend(Answerer, Protocol):
    """An ``Answerer`` and all that it can tell of itself."""

    @property
    def facts(self) -> EngineFacts: ...

    async def prioritise(self, priorities: Mapping[str, int]) -> None:
        """As ``Engine.prioritise``, for requests that were opened here."""
        ...

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]: ...

    def adapters(self) -> Sequence[str]:
        """Names of the adapters that requests may ask for."""
        ...

    async def load_adapter(self, name: str, folder: str) -> None:
        """As ``Engine.load_adapter``, on every engine; also ``EngineDead`` where none took it."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """As ``Engine.unload_adapter``, on every engine."""
        ...

    def loads(self) -> Sequence[tuple[str, EngineLoad]]:
        """How busy each engine is, by its replica's name."""
        ...

    def check(self) -> None:
        """Raise ``EngineDead`` where nobody is left to answer."""
        ...
