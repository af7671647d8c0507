"""An engine as a Ray Serve replica: requests come one by one, steps go out one by one."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray.util
from ray import serve

from serving.app.autoscaling import TOKENS, WAITING
from serving.app.messages import (
    AdapterChange,
    Admission,
    Admitted,
    Cancellation,
    Door,
    Refusal,
    Report,
    Step,
    Submission,
    Ticket,
    Vectors,
)
from serving.app.recorder import Telling
from serving.app.wire import SECRET_BYTES, Wire, WireLost, answer
from serving.engine.protocol import Engine, EngineFacts
from serving.errors import EngineDead, ServingError
from serving.request import Delta, Request

LOG = logging.getLogger("serving.app")

DRAIN_LOOK_S = 0.05
IDLE_S = 0.5  # a stream without requests ends, so that a replica that is to go can


@dataclass
class _Outbox:
    """What waits to go to one ingress, and which of its requests run here."""

    deltas: list[Delta] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    left: dict[str, int] = field(default_factory=dict)

    def take(self) -> tuple[Delta, ...]:
        """What has come since, in order."""
        self.news.clear()
        deltas, self.deltas = tuple(self.deltas), []
        return deltas


class EngineReplica:
    """Every method takes the router's ``Ticket`` first.

    ``submit`` admits a request of an ingress; ``listen`` gives that ingress the deltas of all its
    requests, one message for each step, and ends when it has had none for a while. What is meant
    for another replica comes here when that one is no more, and is told so. Behind the ``door`` an
    ingress has the same on a connection of its own; Serve does not count what comes there, so that
    a replica that is to go waits itself for what it is answering.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, make_engine: Callable[[], Engine], recorder: Any = None, every_s: float = 0.0
    ) -> None:
        """``recorder``: Serve's handle of one, told of this replica every ``every_s``, or None."""
        self._name = serve.get_replica_context().replica_id.unique_id
        self._outboxes: dict[str, _Outbox] = {}
        self._owners: dict[str, str] = {}
        self._dead: Refusal | None = None
        self._drains = False
        self._reports = 0
        self._engine = make_engine()
        await self._engine.start()
        self._door, self._server = await self._open_door()
        self._reading = asyncio.ensure_future(self._read())
        self._telling: Telling | None = None
        if recorder is not None:
            self._telling = Telling(self._name, self._engine, recorder, every_s, time.monotonic)
            self._told = asyncio.ensure_future(self._telling.run())

    async def door(self, ticket: Ticket) -> Door:
        return self._door

    async def submit(self, ticket: Ticket, ingress: str, request: Request) -> Admission:
        if self._drains:
            gone = EngineDead("a replica goes away", fix="send the request again")
            return Admission(self._name, Refusal.of(gone))
        outbox = self._outboxes.setdefault(ingress, _Outbox())
        outbox.left[request.request_id] = request.n
        self._owners[request.request_id] = ingress
        if self._telling is not None:
            self._telling.begin(request.request_id)
        try:
            await self._engine.submit(request)
        except ServingError as error:
            self._forget(request.request_id)
            return Admission(self._name, Refusal.of(error))
        except BaseException:
            self._forget(request.request_id)
            raise
        return Admission(self._name)

    async def listen(self, ticket: Ticket, ingress: str) -> AsyncIterator[Step]:
        if gone := self._gone(ticket):
            yield Step(self._engine.load(), dead=gone)
            return
        outbox = self._outboxes.setdefault(ingress, _Outbox())
        try:
            yield Step(self._engine.load())
            while True:
                try:
                    await asyncio.wait_for(outbox.news.wait(), IDLE_S)
                except TimeoutError:
                    if not outbox.left:
                        yield Step(self._engine.load())
                        return
                    continue
                yield Step(self._engine.load(), outbox.take(), self._dead)
                if self._dead is not None:
                    return
        except (asyncio.CancelledError, GeneratorExit):
            # The ingress is gone, and with it whoever would read the rest.
            await asyncio.shield(self.cancel(ticket, list(outbox.left)))
            raise

    async def cancel(self, ticket: Ticket, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self._forget(request_id)
            await self._engine.cancel(request_id)

    async def embed(self, ticket: Ticket, prompts: Sequence[Sequence[int]]) -> Vectors:
        try:
            vectors = await self._engine.embed(prompts)
        except ServingError as error:
            return Vectors(refusal=Refusal.of(error))
        return Vectors(tuple(tuple(vector) for vector in vectors))

    async def report(self, ticket: Ticket) -> Report:
        dead = self._dead
        if dead is None:
            try:
                self._engine.check()
            except EngineDead as error:
                dead = Refusal.of(error)
        adapters = {facts.name: facts.digest for facts in self._engine.adapters()}
        return Report(self._name, self.facts, self._engine.load(), adapters, dead)

    async def load_adapter(self, ticket: Ticket, name: str, folder: str) -> AdapterChange:
        if gone := self._gone(ticket):
            return AdapterChange(self._name, refusal=gone)
        try:
            facts = await self._engine.load_adapter(name, folder)
        except ServingError as error:
            return AdapterChange(self._name, refusal=Refusal.of(error))
        return AdapterChange(self._name, facts.digest)

    async def unload_adapter(self, ticket: Ticket, name: str) -> AdapterChange:
        if gone := self._gone(ticket):
            return AdapterChange(self._name, refusal=gone)
        try:
            await self._engine.unload_adapter(name)
        except ServingError as error:
            return AdapterChange(self._name, refusal=Refusal.of(error))
        return AdapterChange(self._name)

    @property
    def facts(self) -> EngineFacts:
        return self._engine.facts

    def check_health(self) -> None:
        """Ray Serve's: a replica that raises here is replaced."""
        if self._dead is not None:
            raise self._dead.error()
        self._engine.check()

    def record_routing_stats(self) -> dict[str, int]:
        """Ray Serve's: what the request router gets to see."""
        self._reports += 1
        return {"number": self._reports, "tokens_in_flight": self._engine.load().tokens_in_flight}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray Serve's: what ``LoadPolicy`` gets to see."""
        load = self._engine.load()
        return {WAITING: load.waiting, TOKENS: load.tokens_in_flight}

    async def __del__(self) -> None:
        if hasattr(self, "_reading"):
            self._drains = True
            while self._dead is None and any(each.left for each in self._outboxes.values()):
                await asyncio.sleep(DRAIN_LOOK_S)
            if self._server is not None:
                self._server.close()
            await self._engine.close()
            self._reading.cancel()
            if self._telling is not None:
                self._told.cancel()

    async def _open_door(self) -> tuple[Door, asyncio.Server | None]:
        host, secret = ray.util.get_node_ip_address(), secrets.token_bytes(SECRET_BYTES)
        try:
            server = await answer(host, secret, self._on_wire)
        except OSError as error:
            LOG.warning("replica %s listens nowhere: %s", self._name, error)
            return Door(self._name), None
        port = server.sockets[0].getsockname()[1]
        return Door(self._name, host, port, secret), server

    async def _on_wire(self, wire: Wire) -> None:
        """Answer an ingress on its own connection until it goes."""
        ingress = uuid.uuid4().hex
        outbox = self._outboxes[ingress] = _Outbox()
        telling = asyncio.ensure_future(self._tell(wire, outbox))
        admitting: set[asyncio.Task[None]] = set()
        try:
            while True:
                message = await wire.receive()
                if isinstance(message, Submission):
                    task = asyncio.ensure_future(self._admit(wire, ingress, message))
                    admitting.add(task)
                    task.add_done_callback(admitting.discard)
                else:
                    assert isinstance(message, Cancellation)
                    await self.cancel(Ticket(), message.request_ids)
        except WireLost:
            pass
        finally:
            telling.cancel()
            await asyncio.gather(*admitting, return_exceptions=True)
            await self.cancel(Ticket(), list(outbox.left))
            del self._outboxes[ingress]

    async def _admit(self, wire: Wire, ingress: str, asked: Submission) -> None:
        try:
            admission = await self.submit(Ticket(), ingress, asked.request)
        except Exception as error:  # a bug of an engine: its client must not hang
            LOG.exception("%s could not be admitted", asked.request.request_id)
            failed = EngineDead("the engine failed", got=f"{type(error).__name__}: {error}")
            admission = Admission(self._name, Refusal.of(failed))
        wire.send(Admitted(asked.number, admission))

    async def _tell(self, wire: Wire, outbox: _Outbox) -> None:
        try:
            dead: Refusal | None = None
            while dead is None:
                await outbox.news.wait()
                dead = self._dead
                wire.send(Step(self._engine.load(), outbox.take(), dead))
                await wire.drain()
        except WireLost:
            pass
        wire.close()

    def _gone(self, ticket: Ticket) -> Refusal | None:
        """What to say to a call that was meant for another replica."""
        if ticket.replica in ("", self._name):
            return None
        return Refusal.of(
            EngineDead("a replica went away", got=ticket.replica, fix="send the request again")
        )

    async def _read(self) -> None:
        try:
            async for deltas in self._engine.steps():
                for delta in deltas:
                    self._post(delta)
            self._die(EngineDead("the engine was closed", fix="send the request again"))
        except EngineDead as error:
            self._die(error)
        except Exception as error:  # a bug of an engine: its clients must not hang
            self._die(EngineDead("the engine failed", got=f"{type(error).__name__}: {error}"))

    def _post(self, delta: Delta) -> None:
        ingress = self._owners.get(delta.request_id)
        if ingress is None:
            return
        outbox = self._outboxes[ingress]
        outbox.deltas.append(delta)
        outbox.news.set()
        if self._telling is not None:
            self._telling.take(delta)
        if delta.finish is not None:
            outbox.left[delta.request_id] -= 1
            if not outbox.left[delta.request_id]:
                self._forget(delta.request_id)

    def _forget(self, request_id: str) -> None:
        if self._telling is not None:
            self._telling.end(request_id)
        ingress = self._owners.pop(request_id, None)
        if ingress is not None:
            self._outboxes[ingress].left.pop(request_id, None)

    def _die(self, error: EngineDead) -> None:
        self._dead = Refusal.of(error)
        for outbox in self._outboxes.values():
            outbox.news.set()
