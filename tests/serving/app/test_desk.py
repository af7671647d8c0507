"""A replica's desk over real connections: who leaves is cancelled, and who stays misses nothing."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from patience import PATIENCE_S
from rule_engine import RuleEngine
from served import engine_config, greedy, save_served

pytest.importorskip("ray")

from serving.app.desk import Desk  # noqa: E402
from serving.app.messages import Admitted, Cancellation, Step, Submission  # noqa: E402
from serving.app.wire import Wire, WireLost, answer, call  # noqa: E402
from serving.engine.build import build_engine  # noqa: E402
from serving.engine.protocol import Engine, EngineLoad  # noqa: E402
from serving.request import Delta, Finish, Request  # noqa: E402

HOST, SECRET = "127.0.0.1", bytes(range(32))


@asynccontextmanager
async def desk_of(engine: Engine) -> AsyncIterator[tuple[Desk, Callable[[], Awaitable[Wire]]]]:
    """A desk that is open, and how an ingress connects to it: with little room on the way."""
    await engine.start()
    desk = Desk("a", engine)
    reading = asyncio.ensure_future(desk.run())

    async def on_wire(wire: Wire) -> None:
        narrow(wire, socket.SO_SNDBUF)
        await desk.answer(wire)

    server = await answer(HOST, SECRET, on_wire)

    async def connect() -> Wire:
        wire = await call(HOST, server.sockets[0].getsockname()[1], SECRET)
        narrow(wire, socket.SO_RCVBUF)
        return wire

    try:
        yield desk, connect
    finally:
        server.close()
        await engine.close()
        await reading


def narrow(wire: Wire, buffer: int) -> None:
    wire._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, buffer, 64 << 10)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), PATIENCE_S)

    asyncio.run(bounded())


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def held(load: EngineLoad) -> int:
    return load.blocks_used - load.blocks_cached


@pytest.mark.parametrize("abruptly", [False, True])
def test_when_an_ingress_dies_its_requests_give_back_their_blocks(
    tmp_path: Path, abruptly: bool
) -> None:
    save_served(tmp_path, "qwen3")
    engine = build_engine(engine_config(tmp_path, blocks=400))
    tokens = 100

    async def test() -> None:
        async with desk_of(engine) as (desk, connect):
            dies, lives = await connect(), await connect()
            for number in range(8):
                request = Request(f"r{number}", tuple(range(5, 15 + number)), greedy(tokens))
                dies.send(Submission(number, request))
            lives.send(Submission(0, Request("s", (7, 8, 9), greedy(tokens))))
            while not isinstance(await dies.receive(), Step):
                pass
            assert held(engine.load()) > 0
            if abruptly:
                dies._writer.transport.abort()
            else:
                dies.close()
            made = 0
            while made < tokens:
                if isinstance(message := await lives.receive(), Step):
                    made += sum(len(delta.tokens) for delta in message.deltas)
            await until(lambda: not engine.load().running and not engine.load().waiting)
            assert held(engine.load()) == 0
            assert engine.load().generated_tokens_total < 9 * tokens
            await until(lambda: len(desk._outboxes) == len(desk._wires) == 1)
            assert not desk._owners
            lives.close()

    run(test)


def test_who_reads_slowly_has_it_all_before_a_replica_goes() -> None:
    engine = RuleEngine()

    async def test() -> None:
        async with desk_of(engine) as (desk, connect):
            wire = await connect()
            prompt = tuple(range(10, 210))
            for number in range(60):
                wire.send(Submission(number, Request(f"r{number}", prompt, greedy(300))))
            await until(lambda: len(engine.seen) == 60 and not engine.load().running)
            draining = asyncio.ensure_future(desk.drain())
            await asyncio.wait([draining], timeout=0.3)
            assert not draining.done()
            found: Counter[str] = Counter()
            ended: set[str] = set()
            try:
                while True:
                    message = await wire.receive()
                    for delta in message.deltas if isinstance(message, Step) else ():
                        found[delta.request_id] += len(delta.tokens)
                        if delta.finish is Finish.LENGTH:
                            ended.add(delta.request_id)
            except WireLost:
                pass
            assert len(ended) == 60 and set(found.values()) == {300}
            wire.close()
            await draining

    run(test)


def test_a_replica_that_goes_admits_nothing_and_finishes_the_rest() -> None:
    engine = RuleEngine(step_s=0.01)

    async def test() -> None:
        async with desk_of(engine) as (desk, connect):
            wire = await connect()
            wire.send(Submission(0, Request("r", tuple(range(10, 60)), greedy(50))))
            assert isinstance(await wire.receive(), Admitted)
            draining = asyncio.ensure_future(desk.drain())
            await asyncio.sleep(0)
            wire.send(Submission(1, Request("s", (10, 11), greedy(4))))
            late = await connect()
            with pytest.raises(WireLost):
                await late.receive()
            deltas: list[Delta] = []
            refused = None
            with pytest.raises(WireLost, match="ended"):
                while True:
                    message = await wire.receive()
                    if isinstance(message, Step):
                        deltas += message.deltas
                    else:
                        refused = message
            assert refused is not None and refused.admission.refusal.kind == "EngineDead"
            assert [delta.tokens for delta in deltas] == [(each,) for each in range(10, 60)]
            assert not draining.done()  # not before the other side closes its end
            wire.send(Cancellation(("r",)))
            wire.close()
            late.close()
            await draining

    run(test)


def test_an_engine_that_fails_where_nobody_looks_leaves_no_ingress_waiting() -> None:
    class Failing(RuleEngine):
        """As one whose figures break once it answers."""

        def load(self) -> EngineLoad:
            if self.seen:
                raise ValueError("no figures")
            return super().load()

    engine = Failing(step_s=0.001)

    async def test() -> None:
        async with desk_of(engine) as (_, connect):
            wire = await connect()
            wire.send(Submission(0, Request("r", tuple(range(10, 60)), greedy(50))))
            assert isinstance(await wire.receive(), Admitted)
            with pytest.raises(WireLost):
                while True:
                    await wire.receive()
            await until(lambda: engine.cancelled == ["r"])
            wire.close()

    run(test)
