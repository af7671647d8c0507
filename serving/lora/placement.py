"""Which replica a request with an adapter goes to.

The rank-aware cost is CaraServe's (2401.11240, section 5, Alg. 1): how much slower the request
makes prefills that wait and decodes that run, by the fitted linear model of the replica's steps,
times how many requests are there; infinite where a decode step would break the objective. To it
comes what the request itself waits for, an adapter that has to be loaded included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.lora.step_model import StepModel


@dataclass(frozen=True)
class Wanted:
    """A request as far as placement goes. ``adapter``: its digest, empty for the base.
    ``answer_tokens``: of each of its ``answers``."""

    adapter: str = ""
    rank: int = 0
    prompt_tokens: int = 0
    answer_tokens: float = 60.0
    answers: int = 1


@dataclass(frozen=True)
class ReplicaState:
    """``running``: ranks of what decodes; ``queued``: (tokens, rank) of prompts that wait;
    ``resident``: digests of adapters on its device or on their way there; ``host``: of those in its
    memory, others are on disk; ``most``: answers at once."""

    name: str
    running: tuple[int, ...] = ()
    queued: tuple[tuple[int, int], ...] = ()
    resident: frozenset[str] = frozenset()
    host: frozenset[str] = frozenset()
    most: int = 64

    @property
    def requests(self) -> int:
        return len(self.running) + len(self.queued)


class Placement(Protocol):
    """A policy: the order in which replicas are to be tried, the best first."""

    def order(self, wanted: Wanted, replicas: Sequence[ReplicaState]) -> list[str]: ...


@dataclass(frozen=True, order=True)
class Cost:
    """What a request costs on a replica; the least is the best.

    ``full``: it has no place. ``over``: a decode step would take longer than the objective.
    ``token_s``: by how much it makes the time a token longer, over all requests there and itself.
    Among equals the adapter is there (not ``cold``), and ranks are alike: ``unlike`` is how far
    from it the others' are on average.
    """

    full: bool
    over: bool
    token_s: float
    cold: bool
    unlike: float


class RankAware:
    """``slo_s``: what a decode step may take."""

    def __init__(self, model: StepModel, slo_s: float) -> None:
        self._model = model
        self._slo_s = slo_s

    def order(self, wanted: Wanted, replicas: Sequence[ReplicaState]) -> list[str]:
        ranked = sorted(replicas, key=lambda replica: (self.cost(wanted, replica), replica.name))
        return [replica.name for replica in ranked]

    def cost(self, wanted: Wanted, replica: ReplicaState) -> Cost:
        model = self._model
        before_s = model.prefill(replica.queued)
        own_s = model.prefill([*replica.queued, (wanted.prompt_tokens, wanted.rank)]) - before_s
        cold = bool(wanted.adapter) and wanted.adapter not in replica.resident
        load_s = 0.0
        if cold:
            load_s = model.load(wanted.rank, on_host=wanted.adapter in replica.host)
        there = [*replica.running, *(rank for _, rank in replica.queued)]
        step_s = model.decode([*there, *[wanted.rank] * wanted.answers])
        others_s = own_s / wanted.answer_tokens + step_s - model.decode(there)
        # It is loaded while the prompts before it are computed.
        itself_s = (max(load_s, before_s) + own_s) / wanted.answer_tokens + step_s
        return Cost(
            full=replica.requests + wanted.answers > replica.most,
            over=step_s > self._slo_s,
            token_s=others_s * replica.requests + itself_s,
            cold=cold,
            unlike=sum(abs(rank - wanted.rank) for rank in there) / max(1, len(there)),
        )


class Random:
    """Any."""

    def __init__(self, shuffle: Callable[[list[str]], None]) -> None:
        self._shuffle = shuffle

    def order(self, wanted: Wanted, replicas: Sequence[ReplicaState]) -> list[str]:
        names = [replica.name for replica in replicas]
        self._shuffle(names)
        return names


class FirstFit:
    """The fullest that has a place yet, as Punica packs (2310.18547)."""

    def order(self, wanted: Wanted, replicas: Sequence[ReplicaState]) -> list[str]:
        ranked = sorted(replicas, key=lambda r: (r.requests >= r.most, -r.requests, r.name))
        return [replica.name for replica in ranked]


class LeastLoaded:
    """The fewest requests."""

    def order(self, wanted: Wanted, replicas: Sequence[ReplicaState]) -> list[str]:
        return [replica.name for replica in sorted(replicas, key=lambda r: (r.requests, r.name))]


class AdapterHome:
    """Where the adapter is already, the least loaded of those, as dLoRA keeps requests beside their
    adapters (OSDI 2024); elsewhere only while those have ``slack`` times the average load."""

    def __init__(self, slack: float = 2.0) -> None:
        self._slack = slack

    def order(self, wanted: Wanted, replicas: Sequence[ReplicaState]) -> list[str]:
        average = sum(r.requests for r in replicas) / max(1, len(replicas))

        def key(replica: ReplicaState) -> tuple[bool, bool, int, str]:
            home = wanted.adapter in replica.resident
            fits = replica.requests <= self._slack * max(1.0, average)
            full = replica.requests >= replica.most
            return full, not (home and fits), replica.requests, replica.name

        return [replica.name for replica in sorted(replicas, key=key)]


def baselines(shuffle: Callable[[list[str]], None]) -> Mapping[str, Callable[[], Placement]]:
    """What rank-aware placement is compared with, by name."""
    return {
        "random": lambda: Random(shuffle),
        "first_fit": FirstFit,
        "least_loaded": LeastLoaded,
        "adapter_home": AdapterHome,
    }
