"""Brings adapters from disk and host to the device, beside the steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from serving.errors import InvalidAdapter
from serving.lora.adapters import Adapter, LowRank
from serving.lora.facts import AdapterFacts
from serving.lora.host import HostCache
from serving.lora.peft_folder import read_adapter
from serving.lora.slots import Place
from serving.lora.targets import Targets


@dataclass(frozen=True)
class Loaded:
    """An adapter is in its slot, or ``error`` says why not."""

    digest: str
    error: str = ""


class Store:
    """Adapters by what is known of them: out of the host's memory, or else their folder."""

    def __init__(
        self,
        targets: Targets,
        *,
        max_rank: int,
        dtype: torch.dtype,
        pinned: bool,
        host: HostCache,
    ) -> None:
        self._targets = targets
        self._max_rank = max_rank
        self._dtype = dtype
        self._pinned = pinned
        self._host = host

    def read(self, name: str, folder: str) -> AdapterFacts:
        """Check the adapter in ``folder`` and keep it at hand. Raises ``InvalidAdapter``."""
        adapter = self._read(folder)
        return AdapterFacts(
            name, adapter.digest, folder, adapter.rank, adapter.num_bytes, tuple(adapter.changes)
        )

    def get(self, facts: AdapterFacts) -> Adapter:
        """Raises ``InvalidAdapter`` where the folder holds another one by now, or none."""
        adapter = self._host.get(facts.digest) or self._read(facts.folder)
        if adapter.digest != facts.digest:
            raise InvalidAdapter(
                f"the files of adapter {facts.name} were changed after it was loaded",
                got=f"digest {adapter.digest[:12]} in {facts.folder}",
                expected=facts.digest[:12],
                fix="load it again",
                param="model",
            )
        return adapter

    def _read(self, folder: str) -> Adapter:
        adapter = read_adapter(
            Path(folder), self._targets, max_rank=self._max_rank, dtype=self._dtype
        )
        if self._pinned:
            changes = {
                name: LowRank(change.a_ErI.pin_memory(), change.b_ErO.pin_memory())
                for name, change in adapter.changes.items()
            }
            adapter = Adapter(adapter.digest, changes)
        self._host.put(adapter)
        return adapter


class Loader:
    """One thread that fills slots, in the order in which it was asked to.

    ``write`` copies an adapter to its place. What became of each load is in ``finished``; after
    each ``on_loaded`` is called, in the loader's thread.
    """

    def __init__(
        self,
        store: Store,
        write: Callable[[Place, Adapter], None],
        device: torch.device,
        on_loaded: Callable[[], None],
    ) -> None:
        self._store = store
        self._write = write
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._on_loaded = on_loaded
        self._jobs: queue.SimpleQueue[tuple[AdapterFacts, Place] | None] = queue.SimpleQueue()
        self.finished: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="hecate-adapters", daemon=True)
        self._thread.start()

    def load(self, facts: AdapterFacts, place: Place) -> None:
        """Fill ``place``, which nobody uses, with this adapter."""
        self._jobs.put((facts, place))

    def close(self) -> None:
        """End the thread, after the load under way."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(1)
        while (job := self._jobs.get()) is not None:
            facts, place = job
            try:
                self._load(self._store.get(facts), place)
                loaded = Loaded(facts.digest)
            except Exception as error:  # of one adapter; others load on
                loaded = Loaded(facts.digest, str(error))
            self.finished.put(loaded)
            self._on_loaded()

    def _load(self, adapter: Adapter, place: Place) -> None:
        if self._stream is None:
            self._write(place, adapter)
            return
        with torch.cuda.stream(self._stream):
            self._write(place, adapter)
        self._stream.synchronize()
