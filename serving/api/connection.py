"""What a client's connection may do to an answer: read it as it comes, or go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Response
from starlette.types import Message, Receive, Scope, Send

from serving.api.http_errors import HttpError

T = TypeVar("T")


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T | None:
    """The result of ``work``, which is cancelled as soon as the client goes away; None then.

    The request's body has to have been read: what comes next can only be the disconnect.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


class EventStream(Response):
    """Server-sent events, one for each value of ``values``, then ``[DONE]``.

    Headers go out with the first value, so that what fails before it still has a status of its
    own; what fails later becomes an event with the error, and no ``[DONE]``.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        values: AsyncIterator[dict[str, Any]],
        on_error: Callable[[Exception], HttpError],
        headers: dict[str, str],
    ) -> None:
        super().__init__(None, headers={"cache-control": "no-cache", **headers})
        del self.headers["content-length"]
        self._values = values
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(self._send(send), receive)

    async def _send(self, send: Send) -> None:
        begun = False
        try:
            async for value in self._values:
                if not begun:
                    begun = True
                    await send(self._start(self.status_code, self.raw_headers))
                await send(_body(_event(value), more=True))
            await send(_body(b"data: [DONE]\n\n", more=False))
        except OSError:
            return  # the client is gone
        except Exception as error:
            found = self._on_error(error)
            if begun:
                await send(_body(_event(found.body), more=False))
                return
            raw = [(key.encode(), value.encode()) for key, value in found.headers.items()]
            raw.append((b"content-type", b"application/json"))
            await send(self._start(found.status, raw))
            await send(_body(json.dumps(found.body).encode(), more=False))
        finally:
            await self._values.aclose()  # type: ignore[attr-defined]  # an async generator

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> Message:
        return {"type": "http.response.start", "status": status, "headers": headers}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def _body(data: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
