"""Adapters on all replicas: what one of them took, the others get, those that come later too."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

from serving.app.calls import CALL_LATE
from serving.app.messages import AdapterChange, AdapterId, Report, Ticket
from serving.errors import EngineDead, InvalidAdapter, ModelNotFound

LOG = logging.getLogger("serving.app")


class ReplicasAdapters:
    """``handle``: Serve's, of the engine deployment. ``replicas``: names of those that live;
    ``gone``: told of one that does not.

    It remembers what was loaded through it. Where the engines watch a folder they hear of it from
    there as well, whichever ingress it came to; several of these want such a folder.
    """

    def __init__(
        self,
        handle: Any,
        replicas: Callable[[], Sequence[str]],
        most_s: float,
        clock: Callable[[], float],
        gone: Callable[[str], None],
    ) -> None:
        self._handle = handle
        self._replicas = replicas
        self._most_s = most_s
        self._clock = clock
        self._gone = gone
        self._loaded: dict[str, tuple[str, AdapterId]] = {}  # folder and content by name
        self._reported: dict[str, AdapterId] = {}  # by a replica, the last that did
        self._holders: dict[str, set[str]] = {}  # replicas that may have what was loaded here
        self._leaving: dict[str, set[str]] = {}  # those that could not be told of an unload yet
        # Else who catches up while another content is loaded would bring back the one before.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._changed_s = clock()

    def names(self) -> Sequence[str]:
        return sorted({**self._reported, **self._loaded})

    def knows(self, name: str) -> bool:
        """Whether it was loaded here, so that every replica is to have it."""
        return name in self._loaded

    def digest(self, name: str) -> str:
        """What ``name`` has to mean on every replica; "" for whatever it means there."""
        return self._loaded[name][1].digest if name in self._loaded else ""

    def find(self, name: str) -> AdapterId | None:
        """What ``name`` means, as far as that is known here; None for the base model too."""
        return self._loaded[name][1] if name in self._loaded else self._reported.get(name)

    def left(self, name: str) -> bool:
        """Whether it was unloaded here, and some replica may answer for it all the same."""
        return name in self._leaving

    async def load(self, name: str, folder: str) -> None:
        """Raises what ``Engine.load_adapter`` does, and ``EngineDead``."""
        async with self._loading(name):
            first = await self._call("load_adapter", Ticket(), name, folder)
            if first is None:
                raise EngineDead("no replica takes adapters now", fix="load it again")
            if first.refusal is not None:
                raise first.refusal.error()
            self._leaving.pop(name, None)
            self._loaded[name] = (folder, first.adapter)
            self._holders.setdefault(name, set()).add(first.replica)
            others = [replica for replica in self._replicas() if replica != first.replica]
            await asyncio.gather(*(self._have(name, replica) for replica in others))
            self._changed_s = self._clock()

    async def unload(self, name: str) -> None:
        """Raises ``ModelNotFound`` where no replica has it.

        A replica that does not answer is told again when it is heard of; until then requests for
        ``name`` are refused here (``left``).
        """
        known = self._loaded.pop(name, None) is not None
        replicas = set(self._replicas())
        self._leaving[name] = replicas | self._holders.pop(name, set())
        done = await asyncio.gather(*(self._drop(name, replica) for replica in replicas))
        self._reported.pop(name, None)
        self._changed_s = self._clock()
        if not known and not any(done):
            raise ModelNotFound(
                f"there is no adapter {name} here",
                fix="GET /v1/models lists what is served",
                param="lora_name",
            )

    async def have(self, name: str, replica: str) -> bool:
        """See to it that ``replica`` has what was loaded here under ``name``."""
        async with self._loading(name):
            return await self._have(name, replica)

    async def _have(self, name: str, replica: str) -> bool:
        if name not in self._loaded:  # unloaded before its turn came
            return False
        folder, adapter = self._loaded[name]
        self._holders.setdefault(name, set()).add(replica)
        change = await self._call("load_adapter", Ticket(replica=replica), name, folder)
        if name not in self._loaded:  # unloaded meanwhile
            self._leaving.setdefault(name, set()).add(replica)
            await self._drop(name, replica)
            return False
        if change is None or change.refusal is not None:
            why = change.refusal.what if change and change.refusal else "it does not answer"
            LOG.warning("replica %s did not take adapter %s: %s", replica, name, why)
            return False
        if change.adapter != adapter:
            error = InvalidAdapter(
                f"the files of adapter {name} are not what was loaded",
                got=f"digest {change.adapter.digest[:12]} on replica {replica}",
                expected=adapter.digest[:12],
                fix="load it again",
            )
            LOG.warning("%s", error)
            await self._call("unload_adapter", Ticket(replica=replica), name)
            return False
        return True

    async def hear(self, report: Report, asked_s: float) -> None:
        """Catch up with what a replica reports that it has; ``asked_s``: when it was asked."""
        if asked_s < self._changed_s:  # it may not know of the last change
            return
        self._reported = dict(report.adapters)
        for name, replicas in list(self._leaving.items()):
            if report.replica in replicas:
                await self._drop(name, report.replica)
            elif name in report.adapters:  # it was loaded since, by way of the watched folder
                self._leaving.pop(name, None)
        for name, (_, adapter) in list(self._loaded.items()):
            if name in self._loaded and report.adapters.get(name) != adapter:
                await self.have(name, report.replica)

    def _loading(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _drop(self, name: str, replica: str) -> bool:
        """Have ``replica`` unload it if it answers; whether it had it."""
        change = await self._call("unload_adapter", Ticket(replica=replica), name)
        if change is None:
            return False
        if (replicas := self._leaving.get(name)) is not None:
            replicas.discard(replica)
            if not replicas:
                del self._leaving[name]
        return change.refusal is None

    async def _call(self, method: str, ticket: Ticket, *what: str) -> AdapterChange | None:
        """What came of it; None where the replica does not answer, or is no more."""
        try:
            call = getattr(self._handle, method).remote(ticket, *what)
            change: AdapterChange = await asyncio.wait_for(call, self._most_s)
        except CALL_LATE:
            return None
        if ticket.replica not in ("", change.replica):
            self._forget(ticket.replica)
            return None
        return change

    def _forget(self, replica: str) -> None:
        """A replica is no more, and what it had neither."""
        self._gone(replica)
        for replicas in self._holders.values():
            replicas.discard(replica)
        for name, replicas in list(self._leaving.items()):
            replicas.discard(replica)
            if not replicas:
                del self._leaving[name]
