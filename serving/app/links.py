"""An ingress's own connections to replicas, for requests and steps.

A call of Ray Serve's costs some milliseconds, and so does each message of a stream. Serve still
says where a request goes, and is the way where a connection cannot be made.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serving.app.calls import CALL_LATE
from serving.app.messages import (
    Admission,
    Admitted,
    Cancellation,
    Door,
    Priorities,
    Step,
    Submission,
    Ticket,
)
from serving.app.wire import Wire, WireLost, call
from serving.request import Request

LOG = logging.getLogger("serving.app")
AGAIN_S = 30.0  # after which one that could not be connected to is tried once more
NO_TICKET = Ticket()

Hear = Callable[[str, Step], None]
Lost = Callable[[str, OSError], None]


class Link:
    """One connection; ``run`` reads it until it is lost."""

    def __init__(self, replica: str, wire: Wire) -> None:
        self._replica = replica
        self._wire = wire
        self._numbers = itertools.count()
        self._admitting: dict[int, asyncio.Future[Admission]] = {}
        self.lives = True

    async def submit(self, request: Request, ticket: Ticket = NO_TICKET) -> Admission:
        """Raises ``OSError`` where the replica was lost before it answered."""
        if not self.lives:
            raise WireLost(f"replica {self._replica} is gone")
        number = next(self._numbers)
        admitting: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
        self._admitting[number] = admitting
        try:
            self._wire.send(Submission(number, request, ticket))
            await self._wire.drain()
            return await admitting
        finally:
            del self._admitting[number]

    def cancel(self, request_ids: Sequence[str]) -> None:
        self._wire.send(Cancellation(tuple(request_ids)))

    def prioritise(self, priorities: Mapping[str, int]) -> None:
        self._wire.send(Priorities(priorities))

    async def run(self, hear: Hear) -> OSError:
        """Give each step to ``hear``; returns what ended it."""
        try:
            while True:
                message = await self._wire.receive()
                if isinstance(message, Step):
                    hear(self._replica, message)
                elif isinstance(message, Admitted):
                    admitting = self._admitting.get(message.number)
                    if admitting is not None and not admitting.done():
                        admitting.set_result(message.admission)
        except OSError as error:
            return error
        finally:
            self.lives = False
            self._wire.close()
            for admitting in self._admitting.values():
                if not admitting.done():
                    admitting.set_exception(WireLost(f"replica {self._replica} was lost"))


class Links:
    """``handle``: Serve's, of the engine deployment. ``hear`` is told each step with its replica,
    ``lost`` of each connection that ended. ``apart`` runs work that belongs to no HTTP request."""

    def __init__(
        self,
        handle: Any,
        hear: Hear,
        lost: Lost,
        apart: Callable[[Any], asyncio.Task[Any]],
        clock: Callable[[], float],
        most_s: float,
    ) -> None:
        self._handle = handle
        self._hear = hear
        self._lost = lost
        self._apart = apart
        self._clock = clock
        self._most_s = most_s
        self._making: dict[str, asyncio.Task[Link | None]] = {}
        self._links: dict[str, Link] = {}
        self._shut: dict[str, float] = {}  # when, of those that could not be connected to
        self._running: set[asyncio.Task[None]] = set()

    async def to(self, replica: str) -> Link | None:
        """The connection to ``replica``, made if there is none; None where there can be none.

        Raises ``OSError`` where the replica is no more.
        """
        if (link := self._links.get(replica)) is not None:
            return link
        if self._clock() - self._shut.get(replica, -AGAIN_S) < AGAIN_S:
            return None
        if replica not in self._making:
            making = self._making[replica] = self._apart(self._make(replica))
            making.add_done_callback(lambda _: self._making.pop(replica))
        return await asyncio.shield(self._making[replica])

    def made(self, replica: str) -> Link | None:
        return self._links.get(replica)

    async def _make(self, replica: str) -> Link | None:
        try:
            asking = self._handle.door.remote(Ticket(replica=replica))
            door: Door = await asyncio.wait_for(asking, self._most_s)
        except CALL_LATE as error:
            raise WireLost(f"replica {replica} does not answer") from error
        if door.replica != replica:
            raise WireLost(f"replica {replica} is gone")
        try:
            if not door.port:
                raise WireLost("it listens nowhere")
            wire = await call(door.host, door.port, door.secret)
        except OSError as error:  # of which a timeout is one
            LOG.warning("requests go to replica %s by Ray Serve: %s", replica, error)
            now_s = self._clock()
            self._shut = {one: at_s for one, at_s in self._shut.items() if now_s - at_s < AGAIN_S}
            self._shut[replica] = now_s
            return None
        self._shut.pop(replica, None)
        link = self._links[replica] = Link(replica, wire)
        running = self._apart(self._run(replica, link))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return link

    async def _run(self, replica: str, link: Link) -> None:
        try:
            error = await link.run(self._hear)
        except Exception as wrong:  # whatever it is, nobody may wait for it in vain
            LOG.exception("listening to replica %s failed", replica)
            error = WireLost(str(wrong))
        if self._links.get(replica) is link:
            del self._links[replica]
        self._lost(replica, error)
