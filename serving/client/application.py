"""An application: the name of a class of instances, and the client that they ask with."""

from __future__ import annotations

import functools
import inspect
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Generic, TypeVar, cast

import openai

from serving.client.instance import Instance
from serving.client.reports import Reports

C = TypeVar("C", bound=openai.OpenAI | openai.AsyncOpenAI)
F = TypeVar("F", bound=Callable[..., Any])


class Application(Generic[C]):
    """All instances of ``name``, over a client that asks a server of Hecate's:

        app = Application(OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none"), "review")

        @app.tool
        def run_tests(code: str) -> str: ...

        with app.instance() as run:
            code = run.chat.completions.create(model="demo", messages=[...], unit="write")
            run_tests(code)

    From another server the same requests get the same answers: it ignores the headers, and that it
    hears nothing of tools is warned of once.
    """

    def __init__(self, client: C, name: str) -> None:
        self.name = name
        self._client = client
        self._reports = Reports(client)
        self._current: ContextVar[Instance[C] | None] = ContextVar("instance", default=None)

    @property
    def current(self) -> Instance[C] | None:
        """The instance whose block this is, in this thread or task."""
        return self._current.get()

    def instance(self, name: str = "", *, deadline_s: float | None = None) -> Instance[C]:
        """A new instance, for ``with`` or ``async with``. ``name``: unique among those under way;
        a random one without. ``deadline_s``: when its user wants it done, from its first request.
        """
        return Instance(
            self._client,
            self.name,
            self._reports,
            self._current,
            name=name or uuid.uuid4().hex,
            deadline_s=deadline_s,
        )

    def tool(self, function: F | None = None, *, unit: str = "", kind: str = "tool") -> Any:
        """Decorates a function, of either kind, that an instance runs elsewhere than on the server;
        ``unit`` is the function's name without one. Outside an instance it changes nothing."""
        if function is None:
            return functools.partial(self.tool, unit=unit, kind=kind)
        name = unit or getattr(function, "__name__", "tool")

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def soon(*args: Any, **named: Any) -> Any:
                instance = self.current
                if instance is None:
                    return await function(*args, **named)
                async with instance.tool_soon(name, kind):
                    return await function(*args, **named)

            return cast(F, soon)

        @functools.wraps(function)
        def at_once(*args: Any, **named: Any) -> Any:
            instance = self.current
            if instance is None:
                return function(*args, **named)
            with instance.tool(name, kind):
                return function(*args, **named)

        return cast(F, at_once)
