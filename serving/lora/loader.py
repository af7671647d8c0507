"""Brings adapters from disk and host to the device, beside the steps."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from serving.errors import InvalidAdapter
from serving.lora.adapters import Adapter, LowRank
from serving.lora.arrival import Arrival
from serving.lora.facts import AdapterFacts
from serving.lora.host import HostCache
from serving.lora.peft_folder import read_adapter
from serving.lora.slots import Place
from serving.lora.targets import NO_LAYER, Targets


@dataclass(frozen=True)
class Loaded:
    """An adapter is in its slot, ``arriving`` there layer by layer, or ``error`` says why not."""

    digest: str
    error: str = ""
    arriving: bool = False
    seconds: float = 0.0


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

    @property
    def on_host(self) -> tuple[str, ...]:
        """Digests of adapters that need not be read; for any thread."""
        return self._host.digests

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

    def at_hand(self, facts: AdapterFacts) -> Adapter | None:
        """As it is in the host's memory, if it is."""
        return self._host.get(facts.digest)

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


@dataclass(frozen=True)
class Load:
    """An adapter for a place that nobody else uses.

    ``arrival``: where requests do not wait for all of it, but for its first ``ahead`` layers, with
    0 for none of them. ``held``: whether they go on already, before it is read.
    """

    facts: AdapterFacts
    place: Place
    arrival: Arrival | None = None
    ahead: int = 0
    held: bool = False


class Loader:
    """Reads adapters, and fills slots layer by layer, each in the order in which it was asked to:
    while one is filled, the next ones are read.

    ``write`` copies a layer of an adapter to its place; ``hold``: sees an adapter before requests
    go on without any of its layers. What became of each load is in ``finished``; after each
    ``on_loaded`` is called, in a thread of the loader's. ``cores``: where these run, if any are
    named. ``least_s``: how long a slot takes to fill at least.
    """

    def __init__(
        self,
        store: Store,
        write: Callable[[Place, Adapter, int], None],
        device: torch.device,
        on_loaded: Callable[[], None],
        *,
        num_layers: int,
        hold: Callable[[Adapter], None] = lambda adapter: None,
        cores: frozenset[int] = frozenset(),
        least_s: float = 0.0,
    ) -> None:
        self._store = store
        self._write = write
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._on_loaded = on_loaded
        self._num_layers = num_layers
        self._hold = hold
        self._cores = cores
        self._least_s = least_s
        self._to_read: queue.SimpleQueue[Load | None] = queue.SimpleQueue()
        self._to_fill: queue.SimpleQueue[tuple[Load, Adapter] | None] = queue.SimpleQueue()
        self.finished: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=run, name="hecate-adapters", daemon=True)
            for run in (self._read_all, self._fill_all)
        ]
        for thread in self._threads:
            thread.start()

    def load(self, load: Load) -> None:
        """Fill a place."""
        self._to_read.put(load)

    def close(self) -> None:
        """End the threads, after the loads under way."""
        self._to_read.put(None)
        for thread in self._threads:
            thread.join()

    def _read_all(self) -> None:
        self._settle()
        while (load := self._to_read.get()) is not None:
            try:
                adapter = self._store.get(load.facts)
                if load.arrival is not None and not load.ahead and not load.held:
                    self._hold(adapter)
                    self._tell(Loaded(load.facts.digest, arriving=True))
                self._to_fill.put((load, adapter))
            except Exception as error:  # of one adapter; others load on
                self._failed(load, error)
        self._to_fill.put(None)

    def _fill_all(self) -> None:
        self._settle()
        while (job := self._to_fill.get()) is not None:
            load, adapter = job
            begun_s = time.monotonic()
            try:
                self._fill(adapter, load)
                self._tell(Loaded(load.facts.digest, seconds=time.monotonic() - begun_s))
            except Exception as error:
                self._failed(load, error)

    def _settle(self) -> None:
        torch.set_num_threads(1)
        if self._cores:
            os.sched_setaffinity(0, self._cores)  # of this thread

    def _failed(self, load: Load, error: Exception) -> None:
        if load.arrival is not None:  # nobody waits for it in vain
            load.arrival.landed(self._num_layers)
        self._tell(Loaded(load.facts.digest, str(error)))

    def _tell(self, loaded: Loaded) -> None:
        self.finished.put(loaded)
        self._on_loaded()

    def _fill(self, adapter: Adapter, load: Load) -> None:
        begun_s = time.monotonic()
        for layer in range(NO_LAYER, self._num_layers):
            if self._least_s and layer > NO_LAYER:
                due_s = begun_s + self._least_s * (layer + 1) / self._num_layers
                time.sleep(max(0.0, due_s - time.monotonic()))
            if self._stream is None:
                self._write(load.place, adapter, layer)
            else:
                with torch.cuda.stream(self._stream):
                    self._write(load.place, adapter, layer)
                self._stream.synchronize()
            if load.arrival is not None:
                load.arrival.landed(layer + 1)
                if load.ahead and layer + 1 == load.ahead:
                    self._tell(Loaded(load.facts.digest, arriving=True))
