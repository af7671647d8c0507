"""Applications on a simulated engine, under a policy."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from hecate.bench.gittins.replica import EngineShape, Replica, Sequence
from hecate.bench.gittins.steps import StepTimes
from hecate.bench.gittins.workload import Job
from serving.scheduling.applications.book import Book
from serving.scheduling.applications.live import Ask, Live
from serving.scheduling.applications.order import Order
from serving.scheduling.applications.tags import Tags
from serving.scheduling.applications.traces import Trace


@dataclass(frozen=True)
class Outcome:
    """``job`` was done at ``ended_s``."""

    job: Job
    ended_s: float

    @property
    def seconds(self) -> float:
        return self.ended_s - self.job.at_s


@dataclass(eq=False)
class _Run:
    """A job under way, at its ``position``-th unit, of which so many calls are ``unanswered``."""

    job: Job
    live: Live
    position: int = 0
    unanswered: int = 0
    ended_s: float = math.nan


class Simulation:
    """One run. ``preempts``: whether the engine takes places away, which the order then decides.
    ``tick_s``: how often places are made anew, beside whenever a unit begins or ends.

    Tools have room for all who use them, and what a server decides takes no time.
    """

    def __init__(
        self,
        shape: EngineShape,
        times: StepTimes,
        book: Book,
        order: Order,
        *,
        tick_s: float,
        preempts: bool = True,
    ) -> None:
        self._book = book
        self._order = order
        self._tick_s = tick_s
        self._runs: dict[Live, _Run] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        self._changed = True
        self.now_s = 0.0
        self.busy_s = 0.0
        gives_way = order.gives_way if preempts and order.preempts else None
        self.replica = Replica(shape, times, self._served, gives_way)

    def plan(self, live: Live) -> Trace:
        """What ``live`` will have done in the end, for an oracle."""
        return self._runs[live].job.plan

    def run(self, jobs: Many[Job]) -> list[Outcome]:
        """All of ``jobs``, from the first that comes to the last that is done; in their order."""
        runs: dict[int, _Run] = {}

        def begin(number: int) -> None:
            runs[number] = self._begin(jobs[number])

        for number, job in enumerate(jobs):
            self._at(job.at_s, lambda number=number: begin(number))  # type: ignore[misc]
        next_tick_s = 0.0
        replica, events = self.replica, self._events
        while True:
            while events and events[0][0] <= self.now_s:
                heapq.heappop(events)[2]()
            if not replica.waiting and not replica.running:
                if not events:
                    break
                self.now_s = events[0][0]
                continue
            if self._changed or (replica.waiting and self.now_s >= next_tick_s):
                self._tick()
                next_tick_s = self.now_s + self._tick_s
            horizon_s = events[0][0] if events else math.inf
            if replica.waiting:
                horizon_s = min(horizon_s, next_tick_s)
            seconds, ended = replica.step(horizon_s - self.now_s)
            self.now_s += seconds
            self.busy_s += seconds
            for sequence in ended:
                self._answered(sequence)
        return [Outcome(job, runs[number].ended_s) for number, job in enumerate(jobs)]

    def _tick(self) -> None:
        self._changed = False
        self._order.tick(self._book.lives, self.now_s)
        if not self.replica.waiting:
            return
        place, now_s = self._order.place, self.now_s
        for sequence in self.replica.running:
            sequence.place = place(sequence.live, sequence.ask, now_s)
        for sequence in self.replica.waiting:
            sequence.place = place(sequence.live, sequence.ask, now_s)
        self.replica.sort()

    def _at(self, when_s: float, event: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (when_s, self._numbers, event))

    def _begin(self, job: Job) -> _Run:
        tags = Tags(job.name, job.instance, deadline_s=job.deadline_s)
        live = self._book.begin(tags, job.tenant, self.now_s)
        run = self._runs[live] = _Run(job, live)
        self._open(run)
        return run

    def _open(self, run: _Run) -> None:
        """The next unit of ``run`` begins."""
        unit = run.job.plan.runs[run.position]
        live = run.live
        if not unit.calls:
            self._book.unit_started(live, unit.unit, unit.kind, self.now_s)
            self._at(self.now_s + unit.seconds, lambda: self._tool_ended(run))
            return
        run.unanswered = len(unit.calls)
        asks = []
        for call in unit.calls:
            self._numbers += 1
            name = str(self._numbers)
            self._book.call_started(live, unit.unit, name, call.prompt_tokens, self.now_s)
            asks.append(
                Ask(name, self._numbers, self.now_s, call.prompt_tokens, call.output_tokens)
            )
        for ask in asks:
            place = self._order.place(live, ask, self.now_s)
            self.replica.add(Sequence(live, ask, ask.max_tokens, place))
        self._changed = True

    def _tool_ended(self, run: _Run) -> None:
        self._book.unit_ended(run.live, run.job.plan.runs[run.position].unit, self.now_s)
        self._next(run)

    def _answered(self, sequence: Sequence) -> None:
        live, ask = sequence.live, sequence.ask
        run = self._runs[live]
        self._book.call_ended(live, ask.request_id, self.now_s, output_tokens=sequence.made)
        run.unanswered -= 1
        if not run.unanswered:
            self._next(run)

    def _next(self, run: _Run) -> None:
        self._changed = True
        run.position += 1
        if run.position < len(run.job.plan.runs):
            self._open(run)
            return
        run.ended_s = self.now_s
        self._book.end(run.live, self.now_s)
        del self._runs[run.live]

    def _served(self, sequence: Sequence, prompt_tokens: int, output_tokens: int) -> None:
        live = sequence.live
        before_s = live.attained_s
        self._book.served(live, sequence.ask.request_id, prompt_tokens, output_tokens)
        self._order.served(live, prompt_tokens, output_tokens, live.attained_s - before_s)
