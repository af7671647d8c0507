"""Which replica a request with an adapter goes to.

The rank-aware cost is CaraServe's (2401.11240, section 5, Alg. 1): how much slower the request
makes prefills that wait and decodes that run, by the fitted linear model of the replica's steps,
times how many requests are there; infinite where a decode step would break the objective. To it
comes what loading costs where the adapter is not resident.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class StepModel:
    """Seconds of a step: ``base_s + row_s * rows + rank_s * ranks``, fitted by a profile.

    ``ranks``: of the adapters of its rows, each row's own (``padded`` false, MBGMV) or the largest
    of the batch for each row (BGMV). Prefill the same, over a prompt's tokens.
    """

    decode_base_s: float
    decode_row_s: float
    decode_rank_s: float
    prefill_base_s: float
    prefill_token_s: float
    prefill_token_rank_s: float
    load_rank_s: float
    padded: bool = False

    def decode(self, ranks: Sequence[int]) -> float:
        """One decode step of rows with these ranks, 0 for none."""
        if not ranks:
            return 0.0
        work = max(ranks) * len(ranks) if self.padded else sum(ranks)
        return self.decode_base_s + self.decode_row_s * len(ranks) + self.decode_rank_s * work

    def prefill(self, prompts: Sequence[tuple[int, int]]) -> float:
        """Of prompts of (tokens, rank), together."""
        if not prompts:
            return 0.0
        tokens = sum(count for count, _ in prompts)
        work = sum(count * rank for count, rank in prompts)
        return (
            self.prefill_base_s + self.prefill_token_s * tokens + self.prefill_token_rank_s * work
        )

    def load(self, rank: int) -> float:
        """Bringing an adapter to the device."""
        return self.load_rank_s * rank


@dataclass(frozen=True)
class Wanted:
    """A request as far as placement goes. ``adapter``: its digest, empty for the base."""

    adapter: str
    rank: int
    prompt_tokens: int
    answer_tokens: float = 60.0


@dataclass(frozen=True)
class ReplicaState:
    """``running``: ranks of what decodes; ``queued``: (tokens, rank) of prompts that wait;
    ``resident``: digests of adapters on its device; ``most``: requests at once."""

    name: str
    running: tuple[int, ...] = ()
    queued: tuple[tuple[int, int], ...] = ()
    resident: frozenset[str] = frozenset()
    most: int = 64

    @property
    def requests(self) -> int:
        return len(self.running) + len(self.queued)


class Placement(Protocol):
    """A policy: the order in which replicas are to be tried, the best first."""

    def order(self, wanted: Wanted, replicas: Sequence[ReplicaState]) -> list[str]: ...


class RankAware:
    """``slo_s``: what a decode step may take."""

    def __init__(self, model: StepModel, slo_s: float) -> None:
        self._model = model
        self._slo_s = slo_s

    def order(self, wanted: Wanted, replicas: Sequence[ReplicaState]) -> list[str]:
        ranked = sorted(replicas, key=lambda replica: (*self.cost(wanted, replica), replica.name))
        return [replica.name for replica in ranked]

    def cost(self, wanted: Wanted, replica: ReplicaState) -> tuple[bool, bool, float, bool, float]:
        """Full, over the objective, the cost in seconds a token, which is none where nobody is
        made slower; among equals, whether the adapter is cold, and how unlike the ranks are."""
        model = self._model
        queued = [*replica.queued, (wanted.prompt_tokens, wanted.rank)]
        prefill_s = model.prefill(queued) - model.prefill(replica.queued)
        cold = bool(wanted.adapter) and wanted.adapter not in replica.resident
        if cold:
            prefill_s += model.load(wanted.rank)
        there = [*replica.running, *(rank for _, rank in replica.queued)]
        after_s = model.decode([*there, wanted.rank])
        decode_s = after_s - model.decode(there)
        cost = (prefill_s / wanted.answer_tokens + decode_s) * replica.requests
        unlike = sum(abs(rank - wanted.rank) for rank in there) / max(1, len(there))
        return replica.requests >= replica.most, after_s > self._slo_s, cost, cold, unlike


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


def fit(samples: Sequence[tuple[tuple[float, ...], float]]) -> tuple[float, ...]:
    """Least squares without negative weights: ``features @ weights`` close to each measured value.

    Coordinate descent on the normal equations; there are three features and a few dozen samples.
    """
    width = len(samples[0][0])
    scale = [max(abs(x[i]) for x, _ in samples) or 1.0 for i in range(width)]
    rows = [[x[i] / scale[i] for i in range(width)] for x, _ in samples]
    gram = [[sum(r[i] * r[j] for r in rows) for j in range(width)] for i in range(width)]
    right = [sum(r[i] * y for r, (_, y) in zip(rows, samples, strict=True)) for i in range(width)]
    weights = [0.0] * width
    for _ in range(2000):
        for i in range(width):
            rest = right[i] - sum(gram[i][j] * weights[j] for j in range(width) if j != i)
            weights[i] = max(0.0, rest / gram[i][i]) if gram[i][i] else 0.0
    return tuple(weight / scale[i] for i, weight in enumerate(weights))
