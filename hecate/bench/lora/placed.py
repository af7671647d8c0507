"""Placement over simulated replicas, whose steps and loads take what the fitted model says."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from hecate.bench.lora.workload import Ask, rank_of
from serving.lora.placement import Placement, ReplicaState, Wanted
from serving.lora.slots import Slots
from serving.lora.step_model import StepModel

MAX_RANK = 64


@dataclass(frozen=True)
class Fleet:
    """``replicas`` that answer up to ``most`` at once and have ``slots`` for adapters."""

    replicas: int
    most: int
    slots: int


@dataclass(frozen=True)
class Placed:
    """``attained``: the share of requests whose time a token was within the objective. ``cold``:
    the share for which an adapter had to be loaded."""

    attained: float
    token_s: float
    cold: float


@dataclass
class _Replica:
    """Loads one adapter after another, beside its steps; a request waits for its own."""

    name: str
    slots: Slots
    most: int
    stepping: bool = False
    loader_free_s: float = 0.0
    loads: int = 0
    parked: list[int] = field(default_factory=list)  # no slot, or it is being filled
    queued: list[int] = field(default_factory=list)
    running: dict[int, int] = field(default_factory=dict)  # tokens left
    loading: set[str] = field(default_factory=set)


def place(
    asks: Sequence[Ask],
    policy: Placement,
    model: StepModel,
    fleet: Fleet,
    *,
    prompt: int,
    answer: int,
    slo_s: float,
) -> Placed:
    """Serve ``asks``; each request gets ``answer`` tokens after a prompt of ``prompt``."""
    simulated = _Simulated(asks, policy, model, fleet, prompt, answer)
    simulated.run()
    each = [(simulated.ends[n] - ask.at_s) / answer for n, ask in enumerate(asks)]
    loads = sum(replica.loads for replica in simulated.replicas.values())
    return Placed(
        sum(s <= slo_s for s in each) / len(each), sum(each) / len(each), loads / len(each)
    )


class _Simulated:
    def __init__(
        self,
        asks: Sequence[Ask],
        policy: Placement,
        model: StepModel,
        fleet: Fleet,
        prompt: int,
        answer: int,
    ) -> None:
        self._asks = asks
        self._policy = policy
        self._model = model
        self._prompt = prompt
        self._answer = answer
        self._host = frozenset(f"{ask.adapter}" for ask in asks)
        names = [f"{number:03}" for number in range(fleet.replicas)]
        self.replicas = {
            name: _Replica(name, Slots(fleet.slots, MAX_RANK), fleet.most) for name in names
        }
        self._states = {name: self._state(replica) for name, replica in self.replicas.items()}
        # When, in which order among equal times, of which request or adapter, on which replica.
        self._events: list[tuple[float, int, int, str]] = [
            (ask.at_s, 0, number, "") for number, ask in enumerate(asks)
        ]
        self.ends: dict[int, float] = {}

    def run(self) -> None:
        heapq.heapify(self._events)
        while self._events:
            now_s, kind, number, name = heapq.heappop(self._events)
            if kind == 0:
                name = self._policy.order(self._wanted(number), list(self._states.values()))[0]
                self.replicas[name].parked.append(number)
            replica = self.replicas[name]
            if kind == 1:
                replica.stepping = False
            elif kind == 2:
                replica.loading.discard(f"{number}")
                replica.slots.release(f"{number}")  # the load's own
            self._seat(replica, now_s)
            if not replica.stepping and (replica.queued or replica.running):
                self._step(replica, now_s)
            self._states[name] = self._state(replica)

    def _seat(self, replica: _Replica, now_s: float) -> None:
        """Have those prefilled whose adapter is there, and load for those who find a slot."""
        left = []
        for number in replica.parked:
            adapter = self._asks[number].adapter
            if adapter < 0 or (
                f"{adapter}" not in replica.loading and replica.slots.lease(f"{adapter}")
            ):
                replica.queued.append(number)
                continue
            left.append(number)
            rank = rank_of(adapter)
            if f"{adapter}" not in replica.loading and replica.slots.take(f"{adapter}", rank):
                replica.loads += 1
                replica.loading.add(f"{adapter}")
                begun_s = max(now_s, replica.loader_free_s)
                replica.loader_free_s = begun_s + self._model.load(rank)
                event = (replica.loader_free_s, 2, adapter, replica.name)
                heapq.heappush(self._events, event)
        replica.parked = left

    def _step(self, replica: _Replica, now_s: float) -> None:
        """Prefill what waits, as far as there are places, and decode what runs."""
        room = replica.most - len(replica.running)
        new, replica.queued = replica.queued[:room], replica.queued[room:]
        took_s = self._model.prefill([(self._prompt, self._rank(n)) for n in new])
        replica.running |= dict.fromkeys(new, self._answer)
        took_s += self._model.decode([self._rank(n) for n in replica.running])
        for n in list(replica.running):
            replica.running[n] -= 1
            if not replica.running[n]:
                del replica.running[n]
                self.ends[n] = now_s + took_s
                if self._asks[n].adapter >= 0:
                    replica.slots.release(f"{self._asks[n].adapter}")
        replica.stepping = True
        heapq.heappush(self._events, (now_s + took_s, 1, 0, replica.name))

    def _state(self, replica: _Replica) -> ReplicaState:
        waiting = (*replica.queued, *replica.parked)
        return ReplicaState(
            replica.name,
            tuple(self._rank(n) for n in replica.running),
            tuple((self._prompt, self._rank(n)) for n in waiting),
            frozenset(replica.slots.resident),
            self._host,
            replica.most,
        )

    def _wanted(self, number: int) -> Wanted:
        adapter = self._asks[number].adapter
        digest = "" if adapter < 0 else f"{adapter}"
        return Wanted(digest, self._rank(number), self._prompt, float(self._answer))

    def _rank(self, number: int) -> int:
        adapter = self._asks[number].adapter
        return 0 if adapter < 0 else rank_of(adapter)
