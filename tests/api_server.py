"""The API over an engine, by HTTP, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import openai
import uvicorn
from patience import PATIENCE_S
from rule_engine import toy_tokenizer

from serving.api import (
    ApiConfig,
    Applications,
    Backend,
    Dispatcher,
    Keys,
    Prompts,
    Serving,
    Tenants,
    build_api,
)
from serving.api.tenants import QuotaConfig
from serving.engine.protocol import Engine

E = TypeVar("E", bound=Engine)


class Ordering(Applications, Protocol):
    async def start(self) -> None: ...

    async def close(self) -> None: ...


class Server(Generic[E]):
    """On a port of its own; clock and tokenizer are real. ``applications``: what orders requests,
    where something does."""

    def __init__(
        self, engine: E, applications: Callable[[Backend], Ordering] | None = None
    ) -> None:
        self.engine = engine
        self._make_applications = applications
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    async def _serve(self) -> None:
        await self.engine.start()
        dispatcher = Dispatcher(self.engine)
        reading = asyncio.ensure_future(dispatcher.run())
        applications = None
        if self._make_applications is not None:
            applications = self._make_applications(dispatcher)
            await applications.start()
        tenants = Tenants(Keys(), QuotaConfig(), time.monotonic)
        api = build_api(
            Serving(
                dispatcher,
                Prompts(toy_tokenizer()),
                tenants,
                ApiConfig(),
                time.monotonic,
                lambda: 1_700_000_000.0,
                applications,
            )
        )
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(api, host="127.0.0.1", port=0, log_level="warning")
        )
        serving = asyncio.ensure_future(self._uvicorn.serve())
        while not self._uvicorn.started:
            await asyncio.sleep(0.01)
        port = self._uvicorn.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._ready.set()
        await serving
        if applications is not None:
            await applications.close()
        await self.engine.close()
        await reading

    def stop(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
        )
