"""Placement over simulated replicas, whose steps take what the fitted model says."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hecate.bench.lora.workload import Ask, rank_of
from serving.lora.placement import Placement, ReplicaState, Wanted
from serving.lora.step_model import StepModel

RESIDENT = 16  # adapters on a replica's device


@dataclass
class _Replica:
    name: str
    free_s: float = 0.0
    stepping: bool = False
    queued: list[int] = field(default_factory=list)
    running: dict[int, int] = field(default_factory=dict)
    resident: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Placed:
    """``attained``: the share of requests whose time a token was within the objective."""

    attained: float
    token_s: float


def place(
    asks: Sequence[Ask],
    policy: Placement,
    model: StepModel,
    *,
    replicas: int,
    prompt: int,
    answer: int,
    most: int,
    slo_s: float,
) -> Placed:
    """Serve ``asks``; each request gets ``answer`` tokens after a prompt of ``prompt``."""
    all_ = [_Replica(f"{number:03}") for number in range(replicas)]
    by_name = {replica.name: replica for replica in all_}
    states = {replica.name: ReplicaState(replica.name, most=most) for replica in all_}
    events = [(ask.at_s, 0, number, "") for number, ask in enumerate(asks)]
    heapq.heapify(events)
    ends: dict[int, float] = {}

    def refresh(replica: _Replica) -> None:
        states[replica.name] = replace(
            states[replica.name],
            running=tuple(rank_of(asks[n].adapter) for n in replica.running),
            queued=tuple((prompt, rank_of(asks[n].adapter)) for n in replica.queued),
            resident=frozenset(f"{adapter}" for adapter in replica.resident),
        )

    def step(replica: _Replica, now_s: float) -> None:
        """Prefill what waits, or else decode what runs, as far as there are places."""
        took_s = 0.0
        room = most - len(replica.running)
        new, replica.queued = replica.queued[:room], replica.queued[room:]
        if new:
            took_s += model.prefill([(prompt, rank_of(asks[n].adapter)) for n in new])
            for n in new:
                adapter = asks[n].adapter
                if adapter in replica.resident:
                    replica.resident.remove(adapter)
                else:
                    took_s += model.load(rank_of(adapter))
                replica.resident.append(adapter)
                replica.running[n] = answer
            replica.resident = replica.resident[-RESIDENT:]
        took_s += model.decode([rank_of(asks[n].adapter) for n in replica.running])
        for n in list(replica.running):
            replica.running[n] -= 1
            if not replica.running[n]:
                del replica.running[n]
                ends[n] = now_s + took_s
        replica.stepping = bool(replica.running or replica.queued)
        refresh(replica)
        heapq.heappush(events, (now_s + took_s, 1, 0, replica.name))

    while events:
        now_s, kind, number, name = heapq.heappop(events)
        if kind:
            replica = by_name[name]
            if replica.running or replica.queued:
                step(replica, now_s)
            else:
                replica.stepping = False
            continue
        ask = asks[number]
        wanted = Wanted(f"{ask.adapter}", rank_of(ask.adapter), prompt, float(answer))
        replica = by_name[policy.order(wanted, list(states.values()))[0]]
        replica.queued.append(number)
        refresh(replica)
        if not replica.stepping:
            replica.stepping = True
            step(replica, now_s)
    each = [(ends[n] - ask.at_s) / answer for n, ask in enumerate(asks)]
    return Placed(sum(s <= slo_s for s in each) / len(each), sum(each) / len(each))
