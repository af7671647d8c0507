"""An ingress over replicas that are slow, lost, or gone: what it asks of them, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from patience import PATIENCE_S

ray = pytest.importorskip("ray")
from ray.exceptions import RayError  # noqa: E402

from serving.app.config import IngressConfig  # noqa: E402
from serving.app.messages import (  # noqa: E402
    AdapterChange,
    AdapterId,
    Admission,
    Door,
    Refusal,
    Report,
    Step,
    Ticket,
)
from serving.app.placement import ReplicaOrder  # noqa: E402
from serving.app.replicas import Replicas  # noqa: E402
from serving.engine.protocol import EngineFacts, EngineLoad  # noqa: E402
from serving.errors import EngineDead, ModelNotFound  # noqa: E402
from serving.request import Delta, Finish, Request, Sampling, Usage  # noqa: E402

LOAD = EngineLoad(*[0] * 12)


class Replica:
    """Answers by hand: ``steps`` is what its listener hears, ``pause`` what admission waits for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.adapters: dict[str, str] = {}
        self.steps: asyncio.Queue[tuple[Delta, ...] | RayError] = asyncio.Queue()
        self.loaded: list[str] = []
        self.submitted: list[Request] = []
        self.cancelled: list[str] = []
        self.priorities: dict[str, int] = {}
        self.pause = asyncio.Event()
        self.pause.set()
        self.slow: set[str] = set()  # folders that it has before it says so
        self.told = asyncio.Event()

    async def submit(self, ticket: Ticket, ingress: str, request: Request) -> Admission:
        await self.pause.wait()
        if request.adapter and self.adapters.get(request.adapter) != request.adapter_digest:
            return Admission(self.name, Refusal.of(ModelNotFound("no such adapter")))
        self.submitted.append(request)
        return Admission(self.name)

    async def listen(self, ticket: Ticket, ingress: str) -> AsyncIterator[Step]:
        yield Step(LOAD)
        while True:
            deltas = await self.steps.get()
            if isinstance(deltas, RayError):
                raise deltas
            yield Step(LOAD, deltas)

    async def report(self, ticket: Ticket) -> Report:
        await self.pause.wait()
        facts = EngineFacts("toy", "0", "rule", 300, 64, 8, (0,), False)
        adapters = {name: AdapterId(folder, 8) for name, folder in self.adapters.items()}
        return Report(self.name, facts, LOAD, adapters)

    async def cancel(self, ticket: Ticket, request_ids: list[str]) -> None:
        self.cancelled += request_ids

    async def prioritise(self, ticket: Ticket, priorities: dict[str, int]) -> None:
        self.priorities.update(priorities)

    async def door(self, ticket: Ticket) -> Door:
        return Door(self.name)

    async def load_adapter(self, ticket: Ticket, name: str, folder: str) -> AdapterChange:
        if ticket.replica not in ("", self.name):
            return AdapterChange(self.name, refusal=Refusal.of(EngineDead("gone")))
        await self.pause.wait()
        self.adapters[name] = folder
        self.loaded.append(folder)
        if folder in self.slow:
            await self.told.wait()
        return AdapterChange(self.name, AdapterId(folder, 8))

    async def unload_adapter(self, ticket: Ticket, name: str) -> AdapterChange:
        if ticket.replica not in ("", self.name):
            return AdapterChange(self.name, refusal=Refusal.of(EngineDead("gone")))
        del self.adapters[name]
        return AdapterChange(self.name)


class Handle:
    """Serve's, as far as it is used: calls go where the router would send them."""

    def __init__(self, *replicas: Replica) -> None:
        self.replicas = {replica.name: replica for replica in replicas}
        self._placement = ReplicaOrder(None, lambda: 0.0, 1.0)

    def _routed(self, ticket: Ticket) -> str:
        first = self._placement.order(list(self.replicas), ticket)[0]
        self._placement.sent(first, ticket)
        return first

    def options(self, *, stream: bool) -> Handle:
        return self

    @asynccontextmanager
    async def choose_replica(self, ticket: Ticket, *, _reserve: bool) -> AsyncIterator[Any]:
        yield SimpleNamespace(replica_id=self._routed(ticket))

    def __getattr__(self, method: str) -> Any:
        class Method:
            @staticmethod
            def remote(ticket: Ticket, *what: Any) -> Any:
                return getattr(self.replicas[self._routed(ticket)], method)(ticket, *what)

        return Method


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), PATIENCE_S)

    asyncio.run(bounded())


def request(name: str, adapter: str = "") -> Request:
    return Request(name, (1, 2), Sampling(4), adapter=adapter)


def delta(name: str, token: int, finish: Finish | None = None) -> Delta:
    return Delta(name, 0, (token,), str(token), Usage(2, 0, 1), finish=finish)


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0)


def test_who_leaves_before_admission_is_cancelled_once_admitted() -> None:
    async def test() -> None:
        a = Replica("a")
        a.pause.clear()
        backend = Replicas(Handle(a), IngressConfig())
        opening = asyncio.ensure_future(backend.open(request("r")))
        await asyncio.sleep(0.01)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await backend.close("r")
        assert not a.submitted
        a.pause.set()
        await until(lambda: a.cancelled == ["r"])
        assert [each.request_id for each in a.submitted] == ["r"]

    run(test)


def test_of_a_replica_that_hangs_another_one_is_tried() -> None:
    async def test() -> None:
        a, b = Replica("a"), Replica("b")
        a.pause.clear()
        backend = Replicas(Handle(a, b), IngressConfig(admit_s=0.05))
        deltas = await backend.open(request("r"))
        b.steps.put_nowait((delta("r", 5, Finish.STOP),))
        assert [each.tokens async for each in deltas] == [(5,)]
        a.pause.set()
        await until(lambda: a.cancelled == ["r"])  # once it admits it after all
        assert not b.cancelled

    run(test)


def test_a_replica_that_hangs_keeps_no_other_from_being_heard() -> None:
    async def test() -> None:
        a, b = Replica("a"), Replica("b")
        backend = Replicas(Handle(b, a), IngressConfig(watch_s=0.005, silence_s=0.5))
        await backend.start()
        await until(lambda: {name for name, _ in backend.loads()} == {"a", "b"})
        a.pause.clear()
        begun_s = asyncio.get_running_loop().time()
        await until(lambda: [name for name, _ in backend.loads()] == ["b"])
        while asyncio.get_running_loop().time() < begun_s + 1.5:
            backend.check()
            await asyncio.sleep(0.01)
        backend._watching.cancel()

    run(test)


def test_a_replica_whose_places_are_taken_comes_last() -> None:
    async def test() -> None:
        a, b = Replica("a"), Replica("b")
        backend = Replicas(Handle(a, b), IngressConfig())
        await backend.start()
        for number in range(2 * backend.facts.max_sequences + 1):
            await backend.open(request(f"{number}"))
        assert [len(each.submitted) for each in (a, b)] == [9, 8]  # beyond all, the first again
        backend._watching.cancel()

    run(test)


def test_a_priority_goes_where_the_request_is_and_with_it_when_it_moves() -> None:
    async def test() -> None:
        a, b = Replica("a"), Replica("b")
        backend = Replicas(Handle(a, b), IngressConfig())
        deltas = await backend.open(request("r"))
        await backend.prioritise({"r": 7, "unknown": 3})
        await until(lambda: a.priorities == {"r": 7})
        a.steps.put_nowait(RayError("lost"))
        b.steps.put_nowait((delta("r", 1, Finish.STOP),))
        assert [each.tokens async for each in deltas] == [(1,)]
        assert [each.priority for each in b.submitted] == [7] and not b.priorities

    run(test)


def test_nothing_comes_of_the_replica_that_lost_a_request() -> None:
    async def test() -> None:
        a, b = Replica("a"), Replica("b")
        backend = Replicas(Handle(a, b), IngressConfig())
        deltas = await backend.open(request("r"))
        answer = asyncio.ensure_future(anext(deltas))
        a.steps.put_nowait(RayError("lost"))  # the connection; the replica itself goes on
        await until(lambda: len(b.submitted) == 1)
        other = await backend.open(request("s"))
        a.steps.put_nowait((delta("r", 666), delta("s", 7, Finish.STOP)))
        assert [each.tokens async for each in other] == [(7,)]
        b.steps.put_nowait((delta("r", 5, Finish.STOP),))
        assert (await answer).tokens == (5,)

    run(test)


def test_who_catches_up_does_not_bring_back_what_a_name_meant_before() -> None:
    async def test() -> None:
        a = Replica("a")
        backend = Replicas(Handle(a), IngressConfig())
        await backend.load_adapter("x", "/one")
        a.pause.clear()
        loading = asyncio.ensure_future(backend.load_adapter("x", "/two"))
        await asyncio.sleep(0.01)
        catching_up = asyncio.ensure_future(backend._adapters.have("x", "a"))
        await asyncio.sleep(0.01)
        a.pause.set()
        await asyncio.gather(loading, catching_up)
        assert a.adapters == {"x": "/two"}
        assert a.loaded == ["/one", "/two", "/two"]

    run(test)


def test_an_adapter_that_changes_while_a_replica_catches_up_is_found_all_the_same() -> None:
    async def test() -> None:
        a = Replica("a")
        backend = Replicas(Handle(a), IngressConfig(tries=1))
        await backend.load_adapter("x", "/one")
        a.adapters.clear()  # as another process in its place
        a.pause.clear()
        opening = asyncio.ensure_future(backend.open(request("r", "x")))
        a.pause.set()
        await asyncio.sleep(0)
        a.pause.clear()
        await asyncio.sleep(0.01)  # it was refused, and the replica is to have /one again
        a.slow = {"/two"}
        loading = asyncio.ensure_future(backend.load_adapter("x", "/two"))
        await asyncio.sleep(0.01)
        a.pause.set()
        await until(lambda: a.loaded[-1] == "/two")
        await asyncio.sleep(0.01)  # refused once more, for what the name does not mean there yet
        a.told.set()
        await loading
        await opening
        assert a.submitted[0].adapter_digest == "/two"

    run(test)


def test_a_request_wants_the_adapter_that_was_loaded_and_no_other() -> None:
    async def test() -> None:
        a = Replica("a")
        backend = Replicas(Handle(a), IngressConfig())
        await backend.load_adapter("x", "/two")
        a.adapters["x"] = "/one"  # as a replica that missed the change
        await backend.open(request("r", "x"))
        assert a.adapters == {"x": "/two"}
        assert a.submitted[0].adapter_digest == "/two"

    run(test)
