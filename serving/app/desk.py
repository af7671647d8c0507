"""Where an engine's requests come in, from each ingress, and what it makes goes back to who asked.

An ingress comes on a connection of its own, or by calls of Ray Serve's.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from serving.app.backlog import Backlog
from serving.app.messages import (
    Admission,
    Admitted,
    Cancellation,
    Priorities,
    Refusal,
    Step,
    Submission,
    Ticket,
)
from serving.app.recorder import Telling
from serving.app.wire import Wire, WireLost
from serving.engine.protocol import Engine
from serving.errors import EngineDead, ServingError
from serving.request import Delta, Request

LOG = logging.getLogger("serving.app")

DRAIN_LOOK_S = 0.05
NO_TICKET = Ticket()
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


class Desk:
    """``name``: of this replica. ``run`` reads the engine as long as it lives.

    ``submit`` admits a request of an ingress; ``listen`` gives that ingress the deltas of all its
    requests, one message for each step, and ends when it has had none for a while. ``answer`` does
    both on a connection of the ingress's own, whose end cancels what came on it.
    """

    def __init__(self, name: str, engine: Engine, telling: Telling | None = None) -> None:
        self._name = name
        self._engine = engine
        self._telling = telling
        self._outboxes: dict[str, _Outbox] = {}
        self._owners: dict[str, str] = {}
        self._wires: dict[str, Wire] = {}  # by ingress, of those that have one
        self._drains = False
        self.backlog = Backlog()
        self.dead: Refusal | None = None

    async def run(self) -> None:
        """Hand out what the engine makes until it is closed or dies; does not raise."""
        try:
            async for deltas in self._engine.steps():
                for delta in deltas:
                    self._post(delta)
            self._die(EngineDead("the engine was closed", fix="send the request again"))
        except EngineDead as error:
            self._die(error)
        except Exception as error:  # a bug of an engine: its clients must not hang
            LOG.exception("the engine of replica %s failed", self._name)
            self._die(EngineDead("the engine failed", got=f"{type(error).__name__}: {error}"))

    async def submit(self, ingress: str, request: Request, ticket: Ticket = NO_TICKET) -> Admission:
        if self._drains:
            gone = EngineDead("a replica goes away", fix="send the request again")
            return Admission(self._name, Refusal.of(gone))
        self.backlog.add(request, ticket)
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

    async def cancel(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self._forget(request_id)
            await self._engine.cancel(request_id)

    async def listen(self, ingress: str) -> AsyncIterator[Step]:
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
                yield Step(self._engine.load(), outbox.take(), self.dead)
                if self.dead is not None:
                    return
        except (asyncio.CancelledError, GeneratorExit):
            # The ingress is gone, and with it whoever would read the rest.
            await asyncio.shield(self.cancel(list(outbox.left)))
            raise
        finally:
            if not outbox.left and self._outboxes.get(ingress) is outbox:
                del self._outboxes[ingress]

    async def answer(self, wire: Wire) -> None:
        """Answer an ingress on its own connection until it goes."""
        if self._drains:
            return
        ingress = uuid.uuid4().hex
        outbox = self._outboxes[ingress] = _Outbox()
        self._wires[ingress] = wire
        telling = asyncio.ensure_future(self._tell(wire, outbox))
        admitting: set[asyncio.Task[None]] = set()
        try:
            while True:
                message = await wire.receive()
                if isinstance(message, Submission):
                    task = asyncio.ensure_future(self._admit(wire, ingress, message))
                    admitting.add(task)
                    task.add_done_callback(admitting.discard)
                elif isinstance(message, Priorities):
                    await self._engine.prioritise(message.of)
                else:
                    assert isinstance(message, Cancellation)
                    await self.cancel(message.request_ids)
        except WireLost:
            pass
        finally:
            del self._wires[ingress]
            telling.cancel()
            await asyncio.gather(*admitting, return_exceptions=True)
            await self.cancel(list(outbox.left))
            del self._outboxes[ingress]

    async def drain(self) -> None:
        """Admit nothing more; returns when all is answered, and every ingress with a connection has
        read the last of it. Ray Serve waits for those without."""
        self._drains = True
        while self.dead is None and self._owes():
            await asyncio.sleep(DRAIN_LOOK_S)
        for wire in self._wires.values():
            wire.end()
        while self._wires:  # until the other sides have closed theirs
            await asyncio.sleep(DRAIN_LOOK_S)

    def _owes(self) -> bool:
        return any(outbox.left for outbox in self._outboxes.values()) or any(
            self._outboxes[ingress].deltas for ingress in self._wires
        )

    async def _admit(self, wire: Wire, ingress: str, asked: Submission) -> None:
        try:
            admission = await self.submit(ingress, asked.request, asked.ticket)
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
                dead = self.dead
                wire.send(Step(self._engine.load(), outbox.take(), dead))
                await wire.drain()
        except WireLost:
            pass
        except Exception:  # a bug of an engine: the ingress must not wait for more
            LOG.exception("replica %s could not tell what it made", self._name)
        wire.close()

    def _post(self, delta: Delta) -> None:
        ingress = self._owners.get(delta.request_id)
        if ingress is None:
            return
        outbox = self._outboxes[ingress]
        outbox.deltas.append(delta)
        outbox.news.set()
        self.backlog.take(delta)
        if self._telling is not None:
            self._telling.take(delta)
        if delta.finish is not None:
            outbox.left[delta.request_id] -= 1
            if not outbox.left[delta.request_id]:
                self._forget(delta.request_id)

    def _forget(self, request_id: str) -> None:
        self.backlog.drop(request_id)
        if self._telling is not None:
            self._telling.end(request_id)
        ingress = self._owners.pop(request_id, None)
        if ingress is not None:
            self._outboxes[ingress].left.pop(request_id, None)

    def _die(self, error: EngineDead) -> None:
        self.dead = Refusal.of(error)
        for outbox in self._outboxes.values():
            outbox.news.set()
