"""An engine's LoRA adapters: reading, slots, loading, and steps in which rows have some."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch
from transformers.modeling_utils import PreTrainedModel

from serving.engine.adapted import CompiledAdapted
from serving.engine.batch import Piece
from serving.engine.compiled import CompiledForward
from serving.engine.forward import Forward, HuggingFaceForward
from serving.lora.arrival import Arrival
from serving.lora.assist import HostAssistants
from serving.lora.cold import ASSIST, PIPELINE, WAIT, ColdCosts
from serving.lora.config import LoraConfig
from serving.lora.facts import AdapterFacts, Residency
from serving.lora.gate import AdapterGate, Passed, Waiting
from serving.lora.host import HostCache
from serving.lora.layers import AdapterLayers
from serving.lora.loader import Load, Loader, Store
from serving.lora.slots import Place, Slots
from serving.lora.targets import find_targets
from serving.memory.kv import PagedKV

_LOG = logging.getLogger(__name__)

MOST_ASSISTED_ROWS = 1024
MOST_GUESTS = 4  # adapters that the host does all of: it has others to help as well
ROWS_EACH = 32  # below so many rows a second process costs more than it saves


class EngineAdapters:
    """All of it is for the thread that computes steps, but ``read`` and ``residency``, which any
    thread may call.

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
        self._config = config
        self._loader: Loader | None = None
        self._host: HostAssistants | None = None
        if config.host_workers:
            linears = [target for target in targets.by_name.values() if not target.parameter]
            together: dict[str, int] = {}  # outputs of one block's projections
            for target in linears:
                block = target.module.rpartition(".")[0]
                together[block] = together.get(block, 0) + target.outputs
            self._host = HostAssistants(
                config.host_workers,
                rows=MOST_ASSISTED_ROWS,
                width=max(*together.values(), *(target.inputs for target in linears)),
                dtype=model.dtype,
                rows_each=ROWS_EACH,
                cores=frozenset(config.host_cores),
            )
        self._arrivals: dict[str, Arrival] = {}
        self._guests: dict[str, Arrival] = {}
        self._costs = ColdCosts()
        self._loads = 0  # under way
        self.cold_total = {WAIT: 0, PIPELINE: 0, ASSIST: 0}
        self._gate = AdapterGate(
            slots, self._load, time.monotonic, config.patience_s, self._goes_without
        )
        self.on_loaded: Callable[[], None] = lambda: None

    def read(self, name: str, folder: str) -> AdapterFacts:
        """Check the adapter in ``folder``. Raises ``InvalidAdapter``."""
        return self._store.read(name, folder)

    @property
    def on_device(self) -> int:
        """Adapters that have a slot."""
        return len(self._gate.seated)

    @property
    def loads_total(self) -> int:
        """Adapters that were brought to the device, as often as they were."""
        return sum(self.cold_total.values())

    def residency(self) -> Residency:
        """Where adapters are; for any thread."""
        return Residency(self._gate.seated, self._store.on_host)

    def enter(self, request_id: str, adapter: AdapterFacts, tokens: int) -> Passed:
        """A request of so many ``tokens`` that needs ``adapter``; who may be scheduled now."""
        return self._gate.enter(request_id, adapter, tokens)

    def leave(self, request_id: str) -> Passed:
        """A request has ended; who may be scheduled now."""
        passed = self._gate.leave(request_id)
        for digest in self._guests.keys() - set(self._gate.guests):
            self._told(digest, self._guests.pop(digest))
        return passed

    def loaded(self) -> Passed:
        """What became of the loads that have ended since the last call."""
        passed = Passed()
        while self._loader is not None and not self._loader.finished.empty():
            done = self._loader.finished.get()
            if done.arriving:
                more = self._gate.arriving(done.digest)
            else:
                self._loads -= 1
                if arrival := self._arrivals.pop(done.digest, None):
                    self._told(done.digest, arrival, done.seconds)
                if not done.error:
                    self._costs.loaded(done.seconds)
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
        arrivals = {
            place: arrival
            for digest, arrival in (self._arrivals | self._guests).items()
            if not arrival.whole and (place := self._gate.place_of(digest)) in places
        }
        helped = {place: (each.assisted, each.assisted_s) for place, each in arrivals.items()}
        begun_s = time.monotonic()
        if self._compiled is not None:
            logits_RV = self._compiled(pieces, sampled, runs, arrivals)
        else:
            with self._layers.step(runs, arrivals):
                logits_RV = self._plain(pieces, sampled)
        if not arrivals:
            tokens = sum(len(piece.tokens) for piece in pieces)
            layers = self._layers.targets.num_layers
            self._costs.layer.measured(tokens, (time.monotonic() - begun_s) / layers)
        for place, (number, seconds) in helped.items():
            more = arrivals[place].assisted - number
            rows = sum(count for count, at in runs if at == place)
            if more:
                held_s = (arrivals[place].assisted_s - seconds) / more
                self._costs.host.measured(rows * place.width, held_s)
        return logits_RV

    def close(self) -> None:
        """End the loading."""
        if self._loader is not None:
            self._loader.close()
        if self._host is not None:
            self._host.close()

    def _load(self, first: Waiting, place: Place) -> bool:
        facts = first.facts
        if self._loader is None:
            self._begin()
        assert self._loader is not None
        self._layers.attach(facts.targets)
        if self._compiled is not None and not self._compiled.knows(facts.targets):
            self._compiled = None  # what it changes only the model's own code lets us reach
        way = self._way(first)
        self.cold_total[way] += 1
        _LOG.info("adapter %s of rank %d is loaded by %s", facts.name, facts.rank, way)
        arrival = None
        ahead, held = 0, False
        layers = self._layers.targets.num_layers
        if way != WAIT:
            assistant = self._host if way == ASSIST else None
            arrival = Arrival(facts.digest, layers, assistant)
            self._arrivals[facts.digest] = arrival
        if way == PIPELINE:
            ahead = self._costs.ahead(first.tokens, layers)
        elif way == ASSIST:
            assert self._host is not None
            held = self._host.holds(facts.digest)
        self._loads += 1
        self._loader.load(Load(facts, place, arrival, ahead, held))
        return held

    def _goes_without(self, first: Waiting) -> bool:
        """Whether the host may do all of an adapter that finds no place, until it ends."""
        facts = first.facts
        if self._config.cold not in (ASSIST, "auto") or len(self._guests) >= MOST_GUESTS:
            return False
        if self._host is None or not self._host.alive or not self._host.holds(facts.digest):
            return False
        by_name = self._layers.targets.by_name
        adapter = self._store.at_hand(facts)
        if adapter is None or any(by_name[name].parameter for name in facts.targets):
            return False
        layers = self._layers.targets.num_layers
        self._guests[facts.digest] = Arrival(facts.digest, layers, self._host, adapter)
        self.cold_total[ASSIST] += 1
        return True

    def _way(self, first: Waiting) -> str:
        """By which way the request that came first goes on."""
        assisted = self._host is not None and self._host.alive
        if self._config.cold != "auto":
            way: str = self._config.cold
            return PIPELINE if way == ASSIST and not assisted else way
        layers = self._layers.targets.num_layers
        projections = -(-len(first.facts.targets) // layers)
        return self._costs.choose(
            max(1, first.tokens),
            first.facts.rank,
            layers,
            projections,
            assisted=assisted,
            before=self._loads,
        )

    def _begin(self) -> None:
        """What the first adapter needs."""
        config = self._config
        self._loader = Loader(
            self._store,
            self._layers.write,
            self._device,
            lambda: self.on_loaded(),
            num_layers=self._layers.targets.num_layers,
            hold=self._host.hold if self._host is not None else lambda adapter: None,
            cores=frozenset(config.host_cores),
            least_s=config.throttle_ms / 1000,
        )

    def _told(self, digest: str, arrival: Arrival, seconds: float = 0.0) -> None:
        _LOG.info(
            "adapter %s %s: the host computed %d projections, which held steps up for %.1f ms; "
            "steps waited %d times, %.1f ms",
            digest[:12],
            f"came in {seconds * 1000:.0f} ms" if seconds else "ended without a place",
            *(arrival.assisted, arrival.assisted_s * 1000),
            *(arrival.waited, arrival.waited_s * 1000),
        )
