"""Every policy on the same applications, in every setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hecate.bench.gittins.replica import EngineShape
from hecate.bench.gittins.simulator import Outcome, Simulation
from hecate.bench.gittins.steps import StepTimes
from hecate.bench.gittins.workload import Job, Scale, jobs, poisson, resampled
from serving.scheduling.applications.book import Book
from serving.scheduling.applications.classes import Classes, ClassHistory
from serving.scheduling.applications.config import HistoryConfig
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.live import ClassKey, Live
from serving.scheduling.applications.order import Order
from serving.scheduling.applications.policies import POLICIES, Oracle, Policy
from serving.scheduling.applications.policies.config import OrderConfig
from serving.scheduling.applications.prospects import Prospects
from serving.scheduling.applications.traces import Trace

REQUEST_FCFS = "request_fcfs"
ORACLE = "oracle"
ALL_POLICIES = (*POLICIES, ORACLE)
POISSON = "poisson"
LOADS = (0.7, 0.9, 1.1)
LEARNING = ("sjf", "gittins", "least_slack")
FOREVER = HistoryConfig(idle_s=math.inf, hang_s=math.inf)
TIGHT, MODEST, LOOSE = "tight", "modest", "loose"
DEADLINES = {TIGHT: 1.2, MODEST: 1.5, LOOSE: 2.0}
"""How often the time that an instance takes alone it may take."""


@dataclass(frozen=True)
class Stage:
    """Where all policies are tried. ``released``: of how many sequences an engine has at once under
    a policy that holds a queue before it, where its own ``shape`` has as many as it can."""

    shape: EngineShape
    times: StepTimes
    rates: Rates
    scale: Scale
    order: OrderConfig
    history: tuple[ClassHistory, ...]
    released: int
    tick_s: float

    def run(self, policy: str, work: Sequence[Job], *, preempts: bool = True) -> list[Outcome]:
        """``work`` under ``policy``. Request FCFS is the engine on its own, with no queue before
        it; all others have one, that releases ``released`` sequences."""
        shape = self.shape
        if policy != REQUEST_FCFS:
            shape = replace(shape, sequences=self.released)
        book = Book(FOREVER, lambda: self.rates)
        book.restore(self.history if policy in LEARNING else ())
        made: list[Simulation] = []

        def remaining_s(live: Live) -> float:
            calls = (call for run in made[0].plan(live).runs for call in run.calls)
            return sum(map(self.rates.work_s, calls)) - live.attained_s

        order = Order(policy_of(policy, book, remaining_s), self.order)
        simulation = Simulation(
            shape, self.times, book, order, tick_s=self.tick_s, preempts=preempts
        )
        made.append(simulation)
        return simulation.run(work)

    def saturation(self, count: int, seed: int) -> float:
        """Instances a second that the engine answers where ``count`` are there at once."""
        outcomes = self.run(REQUEST_FCFS, jobs(np.random.default_rng(seed), self.scale, count))
        return count / max(outcome.ended_s for outcome in outcomes)


def policy_of(name: str, prospects: Prospects, remaining_s: Callable[[Live], float]) -> Policy:
    """Of a server's, or the oracle, that is told the truth."""
    return Oracle(remaining_s) if name == ORACLE else POLICIES[name](prospects)


def learnt(traces: Mapping[str, Sequence[Trace]], rates: Rates) -> tuple[ClassHistory, ...]:
    """What a server keeps that has seen ``traces``, by class."""
    classes = Classes(FOREVER, lambda: rates)
    for name, each in traces.items():
        for trace in each:
            classes.add(ClassKey("", name), trace)
    return classes.history()


@dataclass(frozen=True)
class Setting:
    """``arrivals``: the name of a trace, or ``POISSON``; ``load``: of saturation."""

    arrivals: str
    load: float
    seed: int


@dataclass(frozen=True)
class Done:
    """An instance: how long it took, how long it would have taken alone, and its deadline."""

    name: str
    seconds: float
    alone_s: float
    deadline: str

    @property
    def slowdown(self) -> float:
        return self.seconds / self.alone_s

    @property
    def met(self) -> bool:
        return self.slowdown <= DEADLINES[self.deadline]


@dataclass(frozen=True)
class Found:
    setting: Setting
    policy: str
    done: tuple[Done, ...]


def work_of(stage: Stage, seed: int, count: int) -> tuple[list[Job], list[float]]:
    """``count`` instances and how long each takes alone."""
    drawn = jobs(np.random.default_rng([seed, 1]), stage.scale, count)
    alone_s = [stage.run(REQUEST_FCFS, [job])[0].seconds for job in drawn]
    return drawn, alone_s


def try_all(
    stage: Stage,
    settings: Sequence[Setting],
    traces: dict[str, list[float]],
    policies: Sequence[str],
    count: int,
    saturation: float,
) -> list[Found]:
    """``settings`` of one seed, under all ``policies``."""
    seed = settings[0].seed
    drawn, alone_s = work_of(stage, seed, count)
    names = list(DEADLINES)
    found = []
    for setting in settings:
        assert setting.seed == seed, "instances are drawn once for a seed"
        rng = np.random.default_rng([seed, 2])
        rate = setting.load * saturation
        if setting.arrivals == POISSON:
            at_s = poisson(rng, count, rate)
        else:
            at_s = resampled(rng, traces[setting.arrivals], count, rate)
        kinds = [names[number % len(names)] for number in range(count)]
        work = [
            replace(job, at_s=when_s, deadline_s=DEADLINES[kind] * alone)
            for job, when_s, kind, alone in zip(drawn, at_s, kinds, alone_s, strict=True)
        ]
        for policy in policies:
            outcomes = stage.run(policy, work)
            done = tuple(
                Done(outcome.job.name, outcome.seconds, alone, kind)
                for outcome, alone, kind in zip(outcomes, alone_s, kinds, strict=True)
            )
            found.append(Found(setting, policy, done))
    return found
