"""An ingress that listens by itself: it drains, shares its port, and leaves signals alone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

pytest.importorskip("ray")

from patience import PATIENCE_S

from serving.app.config import AppConfig, HttpConfig, RayConfig  # noqa: E402
from serving.app.launch import free_http  # noqa: E402
from serving.app.listener import Listener, shared_socket  # noqa: E402
from serving.errors import ServingError  # noqa: E402

HOST = "127.0.0.1"


def free_port() -> int:
    with shared_socket(HOST, 0) as bound:
        return int(bound.getsockname()[1])


def slow_app(began: asyncio.Event, go: asyncio.Event) -> Callable[..., Awaitable[None]]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one ", "more_body": True})
        began.set()
        await go.wait()
        await send({"type": "http.response.body", "body": b"two"})

    return app


def test_what_is_being_answered_is_answered_and_nothing_new_is_taken() -> None:
    async def main() -> None:
        began, go = asyncio.Event(), asyncio.Event()
        listener = Listener(slow_app(began, go), HOST, free_port())
        await listener.start()
        url = f"http://{HOST}:{listener.port}"
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            answer = asyncio.ensure_future(client.get(url))
            await began.wait()
            stopping = asyncio.ensure_future(listener.stop())
            await asyncio.sleep(0.3)
            assert not stopping.done()
            with pytest.raises(httpx.ConnectError):
                async with httpx.AsyncClient(timeout=PATIENCE_S) as other:
                    await other.get(url)
            go.set()
            assert (await answer).text == "one two"
            await stopping

    asyncio.run(main())


def test_a_successor_listens_before_the_last_one_ends() -> None:
    async def main() -> None:
        port = free_port()
        done = asyncio.Event()
        done.set()
        old = Listener(slow_app(asyncio.Event(), done), HOST, port)
        await old.start()
        new = Listener(slow_app(asyncio.Event(), done), HOST, port)
        await new.start()
        await old.stop()
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            assert (await client.get(f"http://{HOST}:{port}")).text == "one two"
        await new.stop()

    asyncio.run(main())


def test_a_port_that_somebody_has_is_named() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"nothing can listen at {HOST}:{port}"):
            free_http(HttpConfig(port=port))
    assert free_http(HttpConfig(port=0)).port > 0


@pytest.mark.parametrize(
    ("through", "address", "listens"),
    [
        ("auto", "local", True),
        ("auto", "auto", False),
        ("ingress", "auto", True),
        ("proxy", "local", False),
    ],
)
def test_who_listens(through: str, address: str, listens: bool) -> None:
    http = HttpConfig.model_validate({"through": through})
    config = AppConfig(http=http, ray=RayConfig(address=address))
    assert config.ingress_listens is listens
