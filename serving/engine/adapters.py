"""An engine's LoRA adapters: reading, slots, loading, and steps in which rows have some."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from transformers.modeling_utils import PreTrainedModel

from serving.engine.adapted import CompiledAdapted
from serving.engine.batch import Piece
from serving.engine.compiled import CompiledForward
from serving.engine.forward import Forward, HuggingFaceForward
from serving.lora.config import LoraConfig
from serving.lora.facts import AdapterFacts
from serving.lora.gate import AdapterGate, Passed
from serving.lora.host import HostCache
from serving.lora.layers import AdapterLayers
from serving.lora.loader import Loader, Store
from serving.lora.slots import Place, Slots
from serving.lora.targets import find_targets
from serving.memory.kv import PagedKV


class EngineAdapters:
    """All of it is for the thread that computes steps, but ``read``, which any thread may call.

    ``on_loaded``: called in a thread of ours when ``loaded`` has news.
    """

    def __init__(
        self, config: LoraConfig, model: PreTrainedModel, kv: PagedKV, forward: Forward
    ) -> None:
        targets = find_targets(model)
        slots = Slots(config.slots, config.max_rank)
        self._store = Store(
            targets,
            max_rank=config.max_rank,
            dtype=model.dtype,
            pinned=model.device.type == "cuda",
            host=HostCache(config.host_cache_mib << 20),
        )
        self._layers = AdapterLayers(
            model, targets, slots.rows, dtype=model.dtype, device=model.device
        )
        self._device = model.device
        self._plain = HuggingFaceForward(model, kv)
        self._compiled: CompiledAdapted | None = None
        if isinstance(forward, CompiledForward):
            self._compiled = CompiledAdapted(forward, model, self._layers)
        self._loader: Loader | None = None
        self._gate = AdapterGate(slots, self._load, time.monotonic, config.patience_s)
        self.on_loaded: Callable[[], None] = lambda: None

    def read(self, name: str, folder: str) -> AdapterFacts:
        """Check the adapter in ``folder``. Raises ``InvalidAdapter``."""
        return self._store.read(name, folder)

    def enter(self, request_id: str, adapter: AdapterFacts) -> Passed:
        """A request that needs ``adapter``; who may be scheduled now."""
        return self._gate.enter(request_id, adapter)

    def leave(self, request_id: str) -> Passed:
        """A request has ended; who may be scheduled now."""
        return self._gate.leave(request_id)

    def loaded(self) -> Passed:
        """What became of the loads that have ended since the last call."""
        passed = Passed()
        while self._loader is not None and not self._loader.finished.empty():
            done = self._loader.finished.get()
            more = self._gate.loaded(done.digest, done.error)
            passed.ready += more.ready
            passed.failed += more.failed
        return passed

    def forward(
        self, pieces: Sequence[Piece], sampled: Sequence[int], requests: Sequence[str]
    ) -> torch.Tensor:
        """A ``Forward`` in which each piece goes through its request's adapter, "" for none."""
        places = [self._gate.place(name) if name else None for name in requests]
        runs = [(len(piece.tokens), at) for piece, at in zip(pieces, places, strict=True)]
        with self._layers.step(runs):
            if self._compiled is not None:
                return self._compiled(pieces, sampled)
            return self._plain(pieces, sampled)

    def close(self) -> None:
        """End the loading."""
        if self._loader is not None:
            self._loader.close()

    def _load(self, facts: AdapterFacts, place: Place) -> None:
        if self._loader is None:
            self._loader = Loader(
                self._store, self._layers.write, self._device, lambda: self.on_loaded()
            )
        self._layers.attach(facts.targets)
        if self._compiled is not None and not self._compiled.knows(facts.targets):
            self._compiled = None  # what it changes only the model's own code lets us reach
        self._loader.load(facts, place)
