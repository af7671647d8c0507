"""Applications on an engine that answers so many requests at once, each at its own speed.

Coarser than a simulated batch, whose steps slow one another down: what counts here is who is under
way at once, and how long each is elsewhere between two of its requests.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hecate.bench.gittins.workload import Job
from serving.scheduling.applications.book import Book
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.live import Ask, Live
from serving.scheduling.applications.policies.protocol import Policy
from serving.scheduling.applications.tags import Tags
from serving.scheduling.applications.traces import Call, UnitRun

TICK_S = 0.5


@dataclass(eq=False)
class Application:
    """An instance under way. ``number``: in order of arrival; ``place``: of its unit in the plan,
    begun at ``began_s``; ``waiting`` and ``running``: of that unit's calls. ``rank``: as of the
    last tick, or its unit's beginning."""

    job: Job
    number: int
    live: Live
    place: int = 0
    began_s: float = 0.0
    waiting: int = 0
    running: int = 0
    rank: float = 0.0

    @property
    def unit(self) -> UnitRun:
        return self.job.plan.runs[self.place]


@dataclass(frozen=True)
class Waiting:
    """A request in the queue."""

    application: Application
    call: Call
    ask: Ask


class Watcher(Protocol):
    """What is kept for applications, told of all that happens, in order."""

    def look(self, applications: Sequence[Application], now_s: float) -> None:
        """All that are under way, the most urgent first; now and then."""
        ...

    def start(self, application: Application, call: Call, now_s: float) -> float | None:
        """A request is to run; how long it has to wait for what it needs, None if it cannot."""
        ...

    def end(self, application: Application, call: Call, now_s: float) -> None:
        """A request is answered."""
        ...

    def tool(self, application: Application, now_s: float) -> float:
        """A tool's unit begins; how long it has to wait for its backend."""
        ...

    def over(self, application: Application, now_s: float) -> None:
        """An instance has ended."""
        ...


@dataclass
class Engine:
    """``sequences`` at once, the most urgent by ``policy`` first; nothing is preempted."""

    book: Book
    policy: Policy
    rates: Rates
    sequences: int
    watcher: Watcher
    ended: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._counter = itertools.count()
        self._queue: list[Waiting] = []
        self._under_way: dict[Application, None] = {}
        self._running = 0
        self._left = 0

    def serve(self, jobs: Sequence[Job]) -> None:
        """All of ``jobs``, until the last has ended."""
        self._left = len(jobs)
        for number, job in enumerate(jobs):
            self._at(job.at_s, lambda now_s, n=number, j=job: self._arrive(n, j, now_s))  # type: ignore[misc]
        self._at(0.0, self._tick)
        while self._left:
            now_s, _, act = heapq.heappop(self._events)
            act(now_s)
            if not self._events or self._events[0][0] > now_s:
                self._dispatch(now_s)

    def _at(self, at_s: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._counter), act))

    def _tick(self, now_s: float) -> None:
        lives = [application.live for application in self._under_way]
        self.policy.tick(lives, now_s)
        for application in self._under_way:
            application.rank = self._rank(application, now_s)
        self._look(now_s)
        self._at(now_s + TICK_S, self._tick)

    def _look(self, now_s: float) -> None:
        self.watcher.look(sorted(self._under_way, key=lambda a: (a.rank, a.number)), now_s)

    def _rank(self, application: Application, now_s: float) -> float:
        ask = Ask("", application.number, application.live.arrived_s, 0, 0)
        return self.policy.rank(application.live, ask, now_s)

    def _arrive(self, number: int, job: Job, now_s: float) -> None:
        tags = Tags(application=job.name, instance=job.instance)
        application = Application(job, number, self.book.begin(tags, job.tenant, now_s))
        self._under_way[application] = None
        self._begin(application, now_s)
        self._look(now_s)

    def _begin(self, application: Application, now_s: float) -> None:
        """The unit at its place."""
        unit, live = application.unit, application.live
        application.began_s = now_s
        if not unit.calls:
            self.book.unit_started(live, unit.unit, unit.kind, now_s)
            waits_s = self.watcher.tool(application, now_s)
            self._at(
                now_s + waits_s + unit.seconds, lambda at_s: self._tool_ends(application, at_s)
            )
            return
        for call in unit.calls:
            number = next(self._counter)
            ask = Ask(str(number), number, now_s, call.prompt_tokens, call.output_tokens)
            self.book.call_started(live, unit.unit, ask.request_id, call.prompt_tokens, now_s)
            self._queue.append(Waiting(application, call, ask))
        application.waiting = len(unit.calls)
        application.rank = self._rank(application, now_s)

    def _dispatch(self, now_s: float) -> None:
        if self._running >= self.sequences or not self._queue:
            return
        self._queue.sort(key=lambda w: (w.application.rank, w.ask.number))
        left: list[Waiting] = []
        for each in self._queue:
            waits_s = None
            if self._running < self.sequences:
                waits_s = self.watcher.start(each.application, each.call, now_s)
            if waits_s is None:
                left.append(each)
                continue
            self._running += 1
            each.application.waiting -= 1
            each.application.running += 1
            at_s = now_s + waits_s + self.rates.alone_s(each.call)
            self._at(at_s, lambda at_s, e=each: self._call_ends(e, at_s))  # type: ignore[misc]
        self._queue = left

    def _call_ends(self, done: Waiting, now_s: float) -> None:
        application, call = done.application, done.call
        self._running -= 1
        application.running -= 1
        self.watcher.end(application, call, now_s)
        self.book.call_ended(
            application.live, done.ask.request_id, now_s, output_tokens=call.output_tokens
        )
        if not application.waiting and not application.running:
            self._next(application, now_s)

    def _tool_ends(self, application: Application, now_s: float) -> None:
        self.book.unit_ended(application.live, application.unit.unit, now_s)
        self._next(application, now_s)

    def _next(self, application: Application, now_s: float) -> None:
        application.place += 1
        if application.place < len(application.job.plan.runs):
            self._begin(application, now_s)
            return
        self.book.end(application.live, now_s)
        del self._under_way[application]
        self.watcher.over(application, now_s)
        self.ended[application.number] = now_s
        self._left -= 1


class NoWatcher:
    """Everything is always there."""

    def look(self, applications: Sequence[Application], now_s: float) -> None:
        pass

    def start(self, application: Application, call: Call, now_s: float) -> float | None:
        return 0.0

    def end(self, application: Application, call: Call, now_s: float) -> None:
        pass

    def tool(self, application: Application, now_s: float) -> float:
        return 0.0

    def over(self, application: Application, now_s: float) -> None:
        pass


def capacity(jobs: Sequence[Job], rates: Rates, sequences: int) -> float:
    """Applications a second that an engine never idle would end, of a mix as that of ``jobs``."""
    work_s = sum(rates.alone_s(call) for job in jobs for run in job.plan.runs for call in run.calls)
    return sequences * len(jobs) / work_s
