"""Connections of an ingress's own, over real sockets: who may connect, and what loss comes to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
from patience import PATIENCE_S

pytest.importorskip("ray")

from serving.app.links import Link  # noqa: E402
from serving.app.messages import Admission, Admitted, Step  # noqa: E402
from serving.app.wire import Wire, WireLost, answer, call  # noqa: E402
from serving.engine.protocol import EngineLoad  # noqa: E402
from serving.request import Request, Sampling  # noqa: E402

HOST, SECRET = "127.0.0.1", bytes(range(32))
REQUEST = Request("r", (1, 2), Sampling(4, logit_bias={3: 1.0}))


def with_server(
    on_wire: Callable[[Wire], Awaitable[None]], test: Callable[[int], Awaitable[None]]
) -> None:
    async def main() -> None:
        server = await answer(HOST, SECRET, on_wire)
        try:
            port = server.sockets[0].getsockname()[1]
            await asyncio.wait_for(test(port), PATIENCE_S)
        finally:
            server.close()

    asyncio.run(main())


async def echo(wire: Wire) -> None:
    wire.send(await wire.receive())
    await wire.drain()


def test_a_request_comes_over_as_it_is() -> None:
    async def test(port: int) -> None:
        wire = await call(HOST, port, SECRET)
        asked = Request("r", (1, 2), Sampling(4))  # its empty bias is a view of a mapping
        wire.send(asked)
        assert await wire.receive() == asked
        with pytest.raises(WireLost):
            await wire.receive()
        wire.close()

    with_server(echo, test)


def test_who_does_not_know_the_secret_gets_nowhere() -> None:
    served: list[Wire] = []

    async def serve(wire: Wire) -> None:
        served.append(wire)

    async def test(port: int) -> None:
        with pytest.raises(WireLost):
            await call(HOST, port, bytes(32))

    with_server(serve, test)
    assert not served


def test_what_was_not_admitted_when_its_replica_is_lost_is_told() -> None:
    steps: list[tuple[str, Step]] = []

    async def serve(wire: Wire) -> None:
        first = await wire.receive()
        wire.send(Step(EngineLoad(*[0] * 12)))
        wire.send(Admitted(first.number, Admission("a")))
        await wire.receive()  # and is gone

    async def test(port: int) -> None:
        link = Link("a", await call(HOST, port, SECRET))
        running = asyncio.ensure_future(link.run(lambda *heard: steps.append(heard)))
        assert await link.submit(REQUEST) == Admission("a")
        with pytest.raises(WireLost):
            await link.submit(REQUEST)
        assert isinstance(await running, WireLost)
        assert not link.lives
        with pytest.raises(WireLost):
            await link.submit(REQUEST)

    with_server(serve, test)
    assert [replica for replica, _ in steps] == ["a"]


def test_an_end_takes_nothing_from_what_was_sent_or_comes() -> None:
    heard: list[object] = []

    async def serve(wire: Wire) -> None:
        wire.send("first")
        wire.end()
        wire.send("too late")
        heard.append(await wire.receive())
        with pytest.raises(WireLost):
            await wire.receive()

    async def test(port: int) -> None:
        wire = await call(HOST, port, SECRET)
        assert await wire.receive() == "first"
        with pytest.raises(WireLost, match="ended"):
            await wire.receive()
        wire.send("back")
        wire.close()
        while not heard:
            await asyncio.sleep(0.001)

    with_server(serve, test)
    assert heard == ["back"]


def test_both_sides_notice_a_machine_that_is_gone() -> None:
    options: list[int] = []

    def note(wire: Wire) -> None:
        connected = wire._writer.get_extra_info("socket")
        options.append(connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # what was sent and is not answered, on Linux
            timeout_ms = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert 0 < timeout_ms <= 30_000

    async def serve(wire: Wire) -> None:
        note(wire)
        await echo(wire)

    async def test(port: int) -> None:
        wire = await call(HOST, port, SECRET)
        note(wire)
        wire.send(1)
        assert await wire.receive() == 1
        wire.close()

    with_server(serve, test)
    assert options == [1, 1]
