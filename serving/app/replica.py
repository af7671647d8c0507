"""An engine as a Ray Serve replica: requests come one by one, steps go out one by one."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import ray.util
from ray import serve

from serving.app.autoscaling import TOKENS, WAITING
from serving.app.desk import Desk
from serving.app.logs import log_to_serve
from serving.app.messages import (
    AdapterChange,
    AdapterId,
    Admission,
    Door,
    Refusal,
    Report,
    Standing,
    Step,
    Ticket,
    Vectors,
    in_brief,
)
from serving.app.recorder import Telling
from serving.app.wire import SECRET_BYTES, answer
from serving.engine.protocol import Engine, EngineFacts
from serving.errors import EngineDead, ServingError
from serving.request import Request

LOG = logging.getLogger("serving.app")


class EngineReplica:
    """Every method takes the router's ``Ticket`` first.

    ``submit`` and ``listen`` are the ``Desk``'s. What is meant for another replica comes here when
    that one is no more, and is told so. Behind the ``door`` an ingress has the same on a connection
    of its own; Serve does not count what comes there, so that a replica that is to go waits itself
    for what it is answering.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, make_engine: Callable[[], Engine], recorder: Any = None, every_s: float = 0.0
    ) -> None:
        """``recorder``: Serve's handle of one, told of this replica every ``every_s``, or None."""
        log_to_serve()
        self._name = serve.get_replica_context().replica_id.unique_id
        self._reports = 0
        self._engine = make_engine()
        await self._engine.start()
        self._telling: Telling | None = None
        if recorder is not None:
            self._telling = Telling(self._name, self._engine, recorder, every_s, time.monotonic)
            self._told = asyncio.ensure_future(self._telling.run())
        self._desk = Desk(self._name, self._engine, self._telling)
        self._door, self._server = await self._open_door()
        self._reading = asyncio.ensure_future(self._desk.run())

    async def door(self, ticket: Ticket) -> Door:
        return self._door

    async def submit(self, ticket: Ticket, ingress: str, request: Request) -> Admission:
        return await self._desk.submit(ingress, request, ticket)

    async def listen(self, ticket: Ticket, ingress: str) -> AsyncIterator[Step]:
        if gone := self._gone(ticket):
            yield Step(self._engine.load(), dead=gone)
            return
        steps = self._desk.listen(ingress)
        try:
            async for step in steps:
                yield step
        finally:
            await steps.aclose()  # type: ignore[attr-defined]  # an async generator

    async def cancel(self, ticket: Ticket, request_ids: Sequence[str]) -> None:
        await self._desk.cancel(request_ids)

    async def prioritise(self, ticket: Ticket, priorities: Mapping[str, int]) -> None:
        await self._engine.prioritise(priorities)

    async def embed(self, ticket: Ticket, prompts: Sequence[Sequence[int]]) -> Vectors:
        try:
            vectors = await self._engine.embed(prompts)
        except ServingError as error:
            return Vectors(refusal=Refusal.of(error))
        return Vectors(tuple(tuple(vector) for vector in vectors))

    async def report(self, ticket: Ticket) -> Report:
        dead = self._desk.dead
        if dead is None:
            try:
                self._engine.check()
            except EngineDead as error:
                dead = Refusal.of(error)
        adapters = {
            facts.name: AdapterId(facts.digest, facts.rank) for facts in self._engine.adapters()
        }
        return Report(self._name, self.facts, self._engine.load(), adapters, dead)

    async def load_adapter(self, ticket: Ticket, name: str, folder: str) -> AdapterChange:
        if gone := self._gone(ticket):
            return AdapterChange(self._name, refusal=gone)
        try:
            facts = await self._engine.load_adapter(name, folder)
        except ServingError as error:
            return AdapterChange(self._name, refusal=Refusal.of(error))
        return AdapterChange(self._name, AdapterId(facts.digest, facts.rank))

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
        if self._desk.dead is not None:
            raise self._desk.dead.error()
        self._engine.check()

    def record_routing_stats(self) -> dict[str, Any]:
        """Ray Serve's: a ``Standing`` for the request router, by way of processes of Ray's that
        know none of our types."""
        self._reports += 1
        backlog, residency = self._desk.backlog, self._engine.residency()
        standing = Standing(
            self._reports,
            self._engine.load().tokens_in_flight,
            backlog.running,
            backlog.queued,
            tuple(map(in_brief, residency.device)),
            tuple(map(in_brief, residency.host)),
            self._engine.facts.max_sequences,
            backlog.answer_tokens,
            dict(backlog.seen),
        )
        return vars(standing)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray Serve's: what ``LoadPolicy`` gets to see."""
        load = self._engine.load()
        return {WAITING: load.waiting, TOKENS: load.tokens_in_flight}

    async def __del__(self) -> None:
        if hasattr(self, "_reading"):
            await self._desk.drain()
            if self._server is not None:
                self._server.close()
            await self._engine.close()
            self._reading.cancel()
            if self._telling is not None:
                self._told.cancel()

    async def _open_door(self) -> tuple[Door, asyncio.Server | None]:
        host, secret = ray.util.get_node_ip_address(), secrets.token_bytes(SECRET_BYTES)
        try:
            server = await answer(host, secret, self._desk.answer)
        except OSError as error:
            LOG.warning("replica %s listens nowhere: %s", self._name, error)
            return Door(self._name), None
        port = server.sockets[0].getsockname()[1]
        return Door(self._name, host, port, secret), server

    def _gone(self, ticket: Ticket) -> Refusal | None:
        """What to say to a call that was meant for another replica."""
        if ticket.replica in ("", self._name):
            return None
        return Refusal.of(
            EngineDead("a replica went away", got=ticket.replica, fix="send the request again")
        )
