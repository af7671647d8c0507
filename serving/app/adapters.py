"""Adapters on all replicas: what one of them took, the others get, those that come later too."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from ray.exceptions import RayError

from serving.app.messages import AdapterChange, Report, Ticket
from serving.errors import EngineDead, InvalidAdapter, ModelNotFound

LOG = logging.getLogger("serving.app")


class ReplicasAdapters:
    """``handle``: Serve's, of the engine deployment. ``replicas``: names of those that live.

    It remembers what was loaded through it. Where the engines watch a folder they hear of it from
    there as well, whichever ingress it came to; several of these want such a folder.
    """

    def __init__(self, handle: Any, replicas: Callable[[], Sequence[str]], most_s: float) -> None:
        self._handle = handle
        self._replicas = replicas
        self._most_s = most_s
        self._loaded: dict[str, tuple[str, str]] = {}  # folder and digest by name
        self._digests: dict[str, str] = {}  # as a replica last reported them

    def names(self) -> Sequence[str]:
        return sorted({**self._digests, **self._loaded})

    def knows(self, name: str) -> bool:
        """Whether it was loaded here, so that every replica is to have it."""
        return name in self._loaded

    async def load(self, name: str, folder: str) -> None:
        """Raises what ``Engine.load_adapter`` does, and ``EngineDead``."""
        first = await self._call("load_adapter", Ticket(), name, folder)
        if first is None:
            raise EngineDead("no replica takes adapters now", fix="load it again")
        if first.refusal is not None:
            raise first.refusal.error()
        self._loaded[name] = (folder, first.digest)
        others = [replica for replica in self._replicas() if replica != first.replica]
        await asyncio.gather(*(self.have(name, replica) for replica in others))

    async def unload(self, name: str) -> None:
        """Raises ``ModelNotFound`` where no replica has it."""
        known = self._loaded.pop(name, None) is not None
        calls = (
            self._call("unload_adapter", Ticket(replica=replica), name)
            for replica in self._replicas()
        )
        done = [change for change in await asyncio.gather(*calls) if change is not None]
        self._digests.pop(name, None)
        if not known and all(change.refusal is not None for change in done):
            raise ModelNotFound(
                f"there is no adapter {name} here",
                fix="GET /v1/models lists what is served",
                param="lora_name",
            )

    async def have(self, name: str, replica: str) -> bool:
        """See to it that ``replica`` has what was loaded here under ``name``."""
        folder, digest = self._loaded[name]
        change = await self._call("load_adapter", Ticket(replica=replica), name, folder)
        if change is None or change.refusal is not None:
            why = change.refusal.what if change and change.refusal else "it does not answer"
            LOG.warning("replica %s did not take adapter %s: %s", replica, name, why)
            return False
        if change.digest != digest:
            error = InvalidAdapter(
                f"the files of adapter {name} are not what was loaded",
                got=f"digest {change.digest[:12]} on replica {replica}",
                expected=digest[:12],
                fix="load it again",
            )
            LOG.warning("%s", error)
            await self._call("unload_adapter", Ticket(replica=replica), name)
            return False
        return True

    async def hear(self, report: Report) -> None:
        """Catch up with what a replica reports that it has."""
        self._digests = dict(report.adapters)
        for name, (_, digest) in list(self._loaded.items()):
            if report.adapters.get(name) != digest:
                await self.have(name, report.replica)

    async def _call(self, method: str, ticket: Ticket, *what: str) -> AdapterChange | None:
        try:
            call = getattr(self._handle, method).remote(ticket, *what)
            change: AdapterChange = await asyncio.wait_for(call, self._most_s)
        except (RayError, TimeoutError):
            return None
        return change
