"""One run of an application."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar, Token
from typing import Any, Generic, TypeVar, cast

import openai

from serving.client.reports import Reports

C = TypeVar("C", bound=openai.OpenAI | openai.AsyncOpenAI)

UNIT = "call"


class Instance(Generic[C]):
    """Asks with the names of its application and its own in the headers; ends with its block.

    ``unit(name)`` is an ordinary client, for everything that a client does. ``chat.completions``
    and ``completions`` have the same ``create`` as a client's, with ``unit=`` beside. ``tool``
    encloses what runs elsewhere, which the server learns the duration of.
    """

    def __init__(
        self,
        client: C,
        application: str,
        reports: Reports,
        current: ContextVar[Instance[C] | None],
        *,
        name: str,
        deadline_s: float | None,
    ) -> None:
        self.name = name
        self._client = client
        self._application = application
        self._reports = reports
        self._current = current
        self._headers = {"x-app-class": application, "x-app-id": name}
        if deadline_s is not None:
            self._headers["x-deadline"] = f"{deadline_s:g}"
        self._clients: dict[str, C] = {}
        self._before: Token[Instance[C] | None] | None = None
        self.completions = _Calls(self, "completions")
        self.chat = _Chat(self)

    def unit(self, name: str) -> C:
        """A client whose requests are of that unit."""
        if name not in self._clients:
            headers = {**self._headers, "x-unit": name}
            client = self._client.with_options(default_headers=headers)
            self._clients[name] = cast(C, client)
        return self._clients[name]

    @contextmanager
    def tool(self, name: str, kind: str = "tool") -> Iterator[None]:
        """What runs within is unit ``name``, of ``kind`` tool, container, model or search; what is
        raised there makes it one that failed."""
        run = uuid.uuid4().hex
        failed = True
        self._reports.tell(*self._began(name, kind, run))
        try:
            yield
            failed = False
        finally:
            self._reports.tell(*self._ended(name, kind, run, failed))

    @asynccontextmanager
    async def tool_soon(self, name: str, kind: str = "tool") -> AsyncIterator[None]:
        """``tool`` for what is awaited."""
        run = uuid.uuid4().hex
        failed = True
        await self._reports.tell_soon(*self._began(name, kind, run))
        try:
            yield
            failed = False
        finally:
            await self._reports.tell_soon(*self._ended(name, kind, run, failed))

    def __enter__(self) -> Instance[C]:
        self._before = self._current.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._leave()
        self._reports.tell("/applications/end", self._names())

    async def __aenter__(self) -> Instance[C]:
        return self.__enter__()

    async def __aexit__(self, *error: object) -> None:
        self._leave()
        await self._reports.tell_soon("/applications/end", self._names())

    def _leave(self) -> None:
        assert self._before is not None, "an instance is entered before it is left"
        self._current.reset(self._before)
        self._before = None

    def _names(self) -> dict[str, Any]:
        return {"class": self._application, "id": self.name}

    def _began(self, unit: str, kind: str, run: str) -> tuple[str, dict[str, Any]]:
        what = {**self._names(), "unit": unit, "kind": kind, "event": "begin", "run": run}
        return "/applications/units", what

    def _ended(self, unit: str, kind: str, run: str, failed: bool) -> tuple[str, dict[str, Any]]:
        path, what = self._began(unit, kind, run)
        return path, {**what, "event": "end", "failed": failed}


class _Calls:
    """``create`` of a resource of the client, ``path`` below it."""

    def __init__(self, instance: Instance[Any], *path: str) -> None:
        self._instance = instance
        self._path = path

    def create(self, *, unit: str = UNIT, **asked: Any) -> Any:
        """What the client's own returns."""
        found: Any = self._instance.unit(unit)
        for name in self._path:
            found = getattr(found, name)
        return found.create(**asked)


class _Chat:
    def __init__(self, instance: Instance[Any]) -> None:
        self.completions = _Calls(instance, "chat", "completions")
