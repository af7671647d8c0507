"""Values between two processes that share a secret, over a TCP connection of their own.

Each side proves that it knows the secret, on fresh random bytes of both (as HMAC, RFC 2104), before
anything that the other one says is unpickled.
"""

from __future__ import annotations

import asyncio
import copyreg
import hmac
import io
import pickle
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

PROVE_S = 5.0
SECRET_BYTES = NONCE_BYTES = PROOF_BYTES = 32
_LENGTH = struct.Struct("!I")
_CALLER, _CALLED = b"caller", b"called"
# A machine that went away without a word is noticed after 5 + 3 * 5 seconds; as soon, too, where
# something was sent to it, which the kernel would else send again for a quarter of an hour.
_KEEP_ALIVE = (
    ("TCP_KEEPIDLE", 5),
    ("TCP_KEEPINTVL", 5),
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", 20_000),  # in ms
)


class WireLost(ConnectionError):
    """Nothing more comes from the other side, or goes there."""


class Wire:
    """One end. What is sent arrives whole and in order, or not at all."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ended = False
        _keep_alive(writer.get_extra_info("socket"))

    def send(self, value: object) -> None:
        """Does not wait; what is sent after the end is lost, which ``receive`` tells."""
        if not self._ended and not self._writer.is_closing():
            data = io.BytesIO(bytes(_LENGTH.size))
            data.seek(_LENGTH.size)
            _Pickler(data, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
            data.seek(0)
            data.write(_LENGTH.pack(data.getbuffer().nbytes - _LENGTH.size))
            self._writer.write(data.getvalue())

    async def drain(self) -> None:
        """Until the other side has read most of what was sent. Raises ``WireLost``."""
        try:
            await self._writer.drain()
        except OSError as error:
            raise WireLost(str(error)) from error

    async def receive(self) -> Any:
        """The next value. Raises ``WireLost``."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            return pickle.loads(await self._reader.readexactly(length))
        except asyncio.IncompleteReadError as error:
            raise WireLost("the other side ended it") from error
        except OSError as error:
            raise WireLost(str(error)) from error

    def end(self) -> None:
        """Send nothing more. What was sent still goes out, and what comes is still read: the other
        side misses nothing, as it might where ``close`` leaves something unread."""
        self._ended = True
        with suppress(OSError):  # it is gone, which ``receive`` tells
            self._writer.write_eof()

    def close(self) -> None:
        """What was sent still goes out."""
        self._writer.close()


async def call(host: str, port: int, secret: bytes) -> Wire:
    """Connect to who listens there with ``secret``. Raises ``OSError``."""
    async with asyncio.timeout(PROVE_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            theirs = await reader.readexactly(NONCE_BYTES)
            ours = secrets.token_bytes(NONCE_BYTES)
            writer.write(ours + _proof(secret, _CALLER, theirs + ours))
            proof = await reader.readexactly(PROOF_BYTES)
            if not hmac.compare_digest(proof, _proof(secret, _CALLED, theirs + ours)):
                raise WireLost("who listens there does not know the secret")
        except asyncio.IncompleteReadError as error:
            writer.close()
            raise WireLost("who listens there hung up") from error
        except BaseException:
            writer.close()
            raise
    return Wire(reader, writer)


async def answer(
    host: str, secret: bytes, on_wire: Callable[[Wire], Awaitable[None]]
) -> asyncio.Server:
    """Listen at a free port of ``host``; ``on_wire`` has each caller that knows ``secret``.

    Raises ``OSError``.
    """

    async def on_caller(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PROVE_S):
                ours = secrets.token_bytes(NONCE_BYTES)
                writer.write(ours)
                theirs = await reader.readexactly(NONCE_BYTES)
                proof = await reader.readexactly(PROOF_BYTES)
            if not hmac.compare_digest(proof, _proof(secret, _CALLER, ours + theirs)):
                return
            writer.write(_proof(secret, _CALLED, ours + theirs))
            await on_wire(Wire(reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            return  # a stranger, or one that left
        finally:
            writer.close()

    return await asyncio.start_server(on_caller, host, 0)


def _view(of: dict[Any, Any]) -> Mapping[Any, Any]:
    return MappingProxyType(of)


def _reduced(view: Mapping[Any, Any]) -> tuple[Any, tuple[dict[Any, Any]]]:
    return _view, (dict(view),)


class _Pickler(pickle.Pickler):
    """For what requests hold: a view of a mapping cannot be pickled by itself."""

    dispatch_table = {**copyreg.dispatch_table, MappingProxyType: _reduced}


def _proof(secret: bytes, side: bytes, nonces: bytes) -> bytes:
    return hmac.digest(secret, side + nonces, "sha256")


def _keep_alive(connected: socket.socket) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE:
        if hasattr(socket, name):  # macOS lacks some
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
