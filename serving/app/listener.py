"""An ingress replica that listens itself: HTTP reaches it without a proxy of Ray's in between.

Ray Serve's proxy takes each chunk of each stream from a replica as a message of its own, which on a
small machine costs more processor time than the engine. Here a chunk is written where it is made.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

BACKLOG = 2048


class Listener:
    """``api`` at ``host`` and ``port``; others may listen there too, and share what comes."""

    def __init__(self, api: Any, host: str, port: int) -> None:
        self._socket = shared_socket(host, port)
        self._server = _Server(
            uvicorn.Config(
                api,
                backlog=BACKLOG,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                timeout_keep_alive=75,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    async def start(self) -> None:
        """Returns once a connection would be taken."""
        self._serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Take no more connections, and end once what is being answered has been."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are Ray's."""
        yield


def shared_socket(host: str, port: int, *, alone: bool = False) -> socket.socket:
    """A socket bound to ``host`` and ``port``, of which there may be several, unless ``alone``.

    Raises ``OSError`` where somebody else has the port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not alone:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
