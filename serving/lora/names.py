"""What an engine's adapters are called: loaded and unloaded by request, or by a watched folder."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from hecate.errors import HecateError
from serving.errors import InvalidAdapter
from serving.lora.config import LoraConfig
from serving.lora.facts import AdapterFacts
from serving.lora.registry import Registry, check_name
from serving.lora.watch import FolderWatch, Found
from serving.request import Request

_LOG = logging.getLogger(__name__)


class AdapterNames:
    """Lives on one event loop. ``read``: checks the adapter in a folder, in any thread."""

    def __init__(self, config: LoraConfig, read: Callable[[str, str], AdapterFacts]) -> None:
        self._config = config
        self._read = read
        self._registry = Registry()
        folder = config.folder
        self._watch = FolderWatch(Path(folder).expanduser().absolute()) if folder else None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve what the folder holds, and look through it from now on."""
        if self._watch is not None:
            await self._look_through(self._watch)
            self._watching = asyncio.ensure_future(self._keep_looking(self._watch))

    def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    def of(self, request: Request) -> AdapterFacts | None:
        """What ``request`` asks for; None is the base model. Raises ``ModelNotFound``."""
        return self._registry.of(request)

    def all(self) -> Sequence[AdapterFacts]:
        return self._registry.all()

    async def load(self, name: str, folder: str) -> AdapterFacts:
        """Have ``name`` mean the adapter in ``folder``. Raises ``InvalidRequest``."""
        check_name(name)
        path = str(Path(folder).absolute())
        facts = await asyncio.to_thread(self._read, name, path)
        self._registry.assign(facts)
        if self._watch is not None:
            await self._record(self._watch.loaded, facts)
        return facts

    async def unload(self, name: str) -> None:
        """Have ``name`` mean nothing. Raises ``ModelNotFound``."""
        self._registry.remove(name)
        if self._watch is not None:
            await self._record(self._watch.unloaded, name)

    async def _record(self, record: Callable[..., None], what: object) -> None:
        try:
            await asyncio.to_thread(record, what)
        except (HecateError, OSError) as error:
            _LOG.warning("what adapters are served will not outlive this engine: %s", error)

    async def _keep_looking(self, watch: FolderWatch) -> None:
        while True:
            await asyncio.sleep(self._config.watch_s)
            try:
                await self._look_through(watch)
            except (OSError, ValueError, KeyError, TypeError) as error:
                _LOG.warning("the folder of adapters cannot be looked through: %s", error)

    async def _look_through(self, watch: FolderWatch) -> None:
        """Serve what came to the folder, and no longer what went; what is wrong is only told."""
        changes = await asyncio.to_thread(watch.changes)
        for name, found in changes.load.items():
            try:
                await self._serve(name, found)
            except HecateError as error:
                _LOG.warning("adapter %s is not served: %s", name, error)
        for name in changes.unload:
            if self._registry.get(name) is not None:
                self._registry.remove(name)

    async def _serve(self, name: str, found: Found) -> None:
        known = self._registry.get(name)
        if known is not None and found.digest == known.digest:
            return
        check_name(name)
        facts = await asyncio.to_thread(self._read, name, found.folder)
        if found.digest not in ("", facts.digest):
            raise InvalidAdapter(
                "its files were changed after it was loaded",
                got=f"digest {facts.digest[:12]} in {found.folder}",
                expected=found.digest[:12],
                fix="load it again",
            )
        self._registry.assign(facts)
