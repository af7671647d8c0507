"""One server, Poisson arrivals: what the simulator measures beside what theory says.

Classes of exponential sizes, of which each instance's class is known. Their Gittins index is the
class's mean at any age, so that the order is one of preemptive priorities, whose mean response has
a closed form; that of first come, first served is Pollaczek and Khinchine's.

A sample has more or less of a queue than is expected. How much is known of the waits of the same
instances in order of arrival, which follow Lindley's recursion: that is taken off what is measured,
in the proportion of the expected waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hecate.bench.gittins.replica import EngineShape
from hecate.bench.gittins.simulator import Simulation
from hecate.bench.gittins.steps import StepTimes
from hecate.bench.gittins.workload import Job
from serving.scheduling.applications.book import Book
from serving.scheduling.applications.config import HistoryConfig
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.live import Live
from serving.scheduling.applications.order import Order
from serving.scheduling.applications.policies import POLICIES
from serving.scheduling.applications.policies.config import OrderConfig
from serving.scheduling.applications.prospects import Prospect
from serving.scheduling.applications.traces import Call, Kind, Trace, UnitRun

MEANS = (20.0, 60.0, 180.0)
"""Steps of a second that a class needs."""
SHARES = (0.6, 0.3, 0.1)
SECOND = StepTimes(base_s=0.0, row_s=1.0, context_s=0.0, prompt_s=1.0, pair_s=0.0)
RATES = Rates(prefill_token_s=0.0, decode_token_s=1.0, pace_s=1.0)
SERIAL = EngineShape(sequences=1, blocks=10_000_000, block_tokens=1, quantum_steps=0)
"""Nothing that was preempted is computed again, as in theory."""
SAMPLES = 2000


Sizes = NDArray[np.float64]


@dataclass(frozen=True)
class Response:
    """Mean seconds from arrival to end, of all instances."""

    measured_s: float
    theory_s: float

    @property
    def error(self) -> float:
        return abs(self.measured_s / self.theory_s - 1)


class _Means:
    """Knows the classes' sizes: quantiles of their distributions."""

    def __init__(self) -> None:
        evenly = (np.arange(SAMPLES) + 0.5) / SAMPLES
        self._given = {
            str(mean): Prospect(0.0, -mean * np.log1p(-evenly), -mean * np.log1p(-evenly))
            for mean in MEANS
        }

    def prospect(self, live: Live) -> Prospect:
        return self._given[live.key.name]


def check(rng: np.random.Generator, count: int, load: float) -> dict[str, Response]:
    """``count`` instances at ``load``, under both policies. Theory is told the rate and the sizes
    that were drawn, so that what is left is what the order does."""
    chosen = rng.choice(len(MEANS), count, p=SHARES)
    sizes = np.maximum(1, np.ceil(rng.exponential(np.array(MEANS)[chosen])))
    rate = load / float(sizes.mean())
    at_s = np.cumsum(rng.exponential(1 / rate, count))
    at_s *= count / rate / at_s[-1]
    work = [
        Job(str(MEANS[which]), str(number), float(when_s), _one(int(size)))
        for number, (which, size, when_s) in enumerate(zip(chosen, sizes, at_s, strict=True))
    ]
    by_class = [sizes[chosen == which].astype(float) for which in range(len(MEANS))]
    fcfs, priorities = fcfs_s(by_class, rate), priorities_s(by_class, rate)
    mean_s = float(sizes.mean())
    more_s = mean_s + lindley_s(at_s, sizes) - fcfs
    share = (priorities - mean_s) / (fcfs - mean_s)
    return {
        "request_fcfs": Response(_measured_s("request_fcfs", work) - more_s, fcfs),
        "gittins": Response(_measured_s("gittins", work) - share * more_s, priorities),
    }


def lindley_s(at_s: Sizes, sizes: Sizes) -> float:
    """The mean wait in order of arrival."""
    wait_s = total_s = 0.0
    for gap_s, size in zip(np.diff(at_s), sizes[:-1], strict=True):
        wait_s = max(0.0, wait_s + float(size) - float(gap_s))
        total_s += wait_s
    return total_s / len(sizes)


def fcfs_s(sizes: Sequence[Sizes], rate: float) -> float:
    """Pollaczek and Khinchine: E[S] + r E[S^2] / 2 (1 - r E[S])."""
    every = np.concatenate(list(sizes))
    return float(every.mean() + rate * (every**2).mean() / (2 * (1 - rate * every.mean())))


def priorities_s(sizes: Sequence[Sizes], rate: float) -> float:
    """Preemptive priorities, the first class first: of class i, with s_i the load of all up to it,
    E[S_i] / (1 - s_(i-1)) + sum_(j <= i) r_j E[S_j^2] / 2 (1 - s_(i-1)) (1 - s_i)."""
    count = sum(each.size for each in sizes)
    total_s = load = residual_s = 0.0
    for each in sizes:
        own_rate = rate * each.size / count
        before = load
        load += own_rate * float(each.mean())
        residual_s += own_rate * float((each**2).mean()) / 2
        response_s = each.mean() / (1 - before) + residual_s / ((1 - before) * (1 - load))
        total_s += response_s * each.size / count
    return float(total_s)


def _measured_s(policy: str, work: Sequence[Job]) -> float:
    forever = HistoryConfig(idle_s=1e12, hang_s=1e12, window_traces=1)
    order = Order(POLICIES[policy](_Means()), OrderConfig(ageing_s=0, margin=0.05))
    book = Book(forever, lambda: RATES)
    simulation = Simulation(SERIAL, SECOND, book, order, tick_s=1e9)
    return float(np.mean([outcome.seconds for outcome in simulation.run(work)]))


def _one(size: int) -> Trace:
    """One call of so many steps: its prompt is the first."""
    return Trace((UnitRun("all", Kind.LLM, (Call(1, size),)),))
