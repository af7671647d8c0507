"""What a server is told beside its requests. It is never a reason for the application to fail."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import openai

LOG = logging.getLogger("serving.client")
MOST_S = 2.0  # for one report

Client = openai.OpenAI | openai.AsyncOpenAI


class Reports:
    """To the server of ``client``; what cannot be told is warned of, once. One that knows no such
    path is told no more."""

    def __init__(self, client: Client) -> None:
        self._client = client.with_options(timeout=MOST_S, max_retries=0)
        self._warned = self._deaf = False
        self._telling: set[asyncio.Task[None]] = set()

    def tell(self, path: str, body: dict[str, Any]) -> None:
        """From where nothing can be awaited; with an asynchronous client it goes out beside."""
        if isinstance(self._client, openai.AsyncOpenAI):
            telling = asyncio.ensure_future(self.tell_soon(path, body))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)
            return
        if self._deaf:
            return
        try:
            self._client.post(path, body=body, cast_to=object)
        except openai.OpenAIError as error:
            self._warn(path, error)

    async def tell_soon(self, path: str, body: dict[str, Any]) -> None:
        """The same where it can."""
        if isinstance(self._client, openai.OpenAI):
            await asyncio.to_thread(self.tell, path, body)
            return
        if self._deaf:
            return
        try:
            await self._client.post(path, body=body, cast_to=object)
        except openai.OpenAIError as error:
            self._warn(path, error)

    def _warn(self, path: str, error: Exception) -> None:
        self._deaf = self._deaf or isinstance(error, openai.NotFoundError)
        if not self._warned:
            self._warned = True
            LOG.warning("the server does not hear of applications (%s): %s", path, error)
