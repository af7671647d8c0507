"""Who is under way, and what their classes did before: the owner of both.

The runtime tells it what happens, in any order that a network makes of it; what can no longer be,
such as the end of a tool that had failed of its timeout, is left out. ``now_s`` is any clock of
the caller's, the same for all calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from serving.scheduling.applications.classes import Classes, ClassHistory
from serving.scheduling.applications.config import HistoryConfig
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.graph import PDGraph
from serving.scheduling.applications.live import ClassKey, Live, OpenCall, OpenUnit
from serving.scheduling.applications.prospects import NOTHING, Prospect
from serving.scheduling.applications.steady import Steady
from serving.scheduling.applications.tags import Tags
from serving.scheduling.applications.traces import Call, Kind, Trace, UnitRun

MOST_RUNS = 512
MOST_CALLS = 1024
_LOOKED_AT = 64


class Book:
    """Owner of the classes' graphs and of the instances under way, whose ``Prospects`` it gives.

    A request: ``begin``, ``call_started``, ``served`` as it is computed, ``call_ended``. A tool:
    ``begin`` (with the tags that its caller gives), ``unit_started``, ``unit_ended``. Both may go
    on side by side within one instance and one unit. ``tick`` now and then.

    Of one instance no more than ``MOST_RUNS`` units are kept, and ``MOST_CALLS`` calls of each:
    what comes after these counts into the last of them.
    """

    def __init__(self, config: HistoryConfig, rates: Callable[[], Rates]) -> None:
        """``rates``: what work costs now."""
        self._config = config
        self._rates = rates
        self._steady = Steady()
        self._classes = Classes(config, rates)
        self._lives: dict[Live, None] = {}  # the longest unheard of first
        self._named: dict[tuple[ClassKey, str], Live] = {}
        self._held: dict[tuple[Live, str, str], float] = {}  # units' runs; the oldest first
        self._prospects: dict[Live, Prospect] = {}
        self.hung = 0
        self.idled = 0

    @property
    def lives(self) -> Collection[Live]:
        """All instances under way."""
        return self._lives.keys()

    @property
    def graphs(self) -> Mapping[ClassKey, PDGraph]:
        return self._classes.graphs

    @property
    def evicted(self) -> int:
        """Classes that there was no room for."""
        return self._classes.evicted

    def live(self, tags: Tags, tenant: str) -> Live | None:
        """The instance that ``tags`` name, if it is under way."""
        return self._named.get((ClassKey(tenant, tags.application), tags.instance))

    def begin(self, tags: Tags, tenant: str, now_s: float) -> Live:
        """The instance that ``tags`` name, which begins if it is not under way; of an untagged
        request, and of one that names no instance, an instance of its own that ends with it."""
        key = ClassKey(tenant, tags.application)
        live = self._named.get((key, tags.instance)) if tags.instance else None
        steady_s = self._steady.at(now_s)
        if live is None:
            live = Live(key, tags.instance, now_s, began_s=steady_s, last=not tags.instance)
            if tags.instance:
                self._named[key, tags.instance] = live
            self._make_room(steady_s)
        live.deadline_s = min(live.deadline_s, live.arrived_s + tags.deadline_s)
        live.last = live.last or tags.last
        self._heard(live, steady_s)
        return live

    def call_started(
        self, live: Live, unit: str, request_id: str, prompt_tokens: int, now_s: float
    ) -> None:
        """A request of ``live`` came; it may have to wait."""
        steady_s = self._steady.at(now_s)
        self._open(live, unit, Kind.LLM, steady_s).running[request_id] = OpenCall(prompt_tokens)
        self._heard(live, steady_s)

    def served(self, live: Live, request_id: str, prompt_tokens: int, output_tokens: int) -> None:
        """So many more tokens of a request were computed. What is computed again after a preemption
        brings it no further than it was, and need not be left out."""
        for unit in live.open_units.values():
            call = unit.running.get(request_id)
            if call is not None:
                call.computed = min(call.computed + prompt_tokens, call.prompt_tokens)
                call.output += output_tokens
                cost_s = self._rates().work_s(Call(call.computed, call.output))
                _attain(live, unit, call, cost_s)

    def call_ended(
        self,
        live: Live,
        request_id: str,
        now_s: float,
        *,
        output_tokens: int,
        cached_tokens: int = 0,
        failed: bool = False,
    ) -> None:
        """A request is answered, or will not be. ``output_tokens``: all of its answers'."""
        steady_s = self._steady.at(now_s)
        for unit in list(live.open_units.values()):
            call = unit.running.pop(request_id, None)
            if call is not None:
                done = Call(call.prompt_tokens, output_tokens, cached_tokens)
                if failed:  # what it had, which is not what it would have come to
                    done = Call(call.computed, call.output)
                unit.failed = unit.failed or failed
                _attain(live, unit, call, self._rates().work_s(done))
                _keep(unit.calls, done)
                self._close(live, unit, steady_s)

    def unit_started(
        self, live: Live, unit: str, kind: Kind, now_s: float, *, run: str = ""
    ) -> None:
        """A unit begins by hand, as tools do. ``run``: tells runs that go on side by side apart."""
        steady_s = self._steady.at(now_s)
        self._open(live, unit, kind, steady_s).held[run] = steady_s
        self._held.pop((live, unit, run), None)
        self._held[live, unit, run] = steady_s
        self._heard(live, steady_s)

    def unit_ended(
        self, live: Live, unit: str, now_s: float, *, run: str = "", failed: bool = False
    ) -> bool:
        """Whether that run was still going on."""
        return self._release(live, unit, run, self._steady.at(now_s), failed=failed)

    def end(self, live: Live, now_s: float) -> None:
        """``live`` ends: what was begun by hand now, requests under way when they are answered."""
        self._stop(live, self._steady.at(now_s))

    def tick(self, now_s: float) -> None:
        """Tools that hang fail, and instances that are idle end. Quick, however many there are."""
        steady_s = self._steady.at(now_s)
        while self._held:
            (live, unit, run), began_s = next(iter(self._held.items()))
            if steady_s - began_s < self._config.hang_s:
                break
            self.hung += 1
            self._release(live, unit, run, steady_s, failed=True)
        while self._lives:
            live = next(iter(self._lives))
            if steady_s - live.seen_s < self._config.idle_s:
                break
            if live.open_units:
                self._heard(live, steady_s)
            else:
                self.idled += 1
                self._end(live)

    def prospect(self, live: Live) -> Prospect:
        """See ``Prospects``."""
        found = self._prospects.get(live)
        if found is None:
            least_s = self._classes.least_s(live.key.tenant)
            graph = self._classes.graphs.get(live.key)
            if graph is None:
                found = Prospect(live.ended_s, NOTHING, NOTHING, least_s)
            else:
                found = graph.prospect(live, least_s)
            if live in self._lives:
                self._prospects[live] = found
        return found

    def history(self) -> tuple[ClassHistory, ...]:
        """What is kept of all classes; values, which another thread may write down."""
        return self._classes.history()

    def restore(self, history: tuple[ClassHistory, ...]) -> None:
        """Takes over what another book had, before anything has begun here."""
        self._classes.restore(history)

    def _heard(self, live: Live, steady_s: float) -> None:
        live.seen_s = steady_s
        self._lives.pop(live, None)
        self._lives[live] = None

    def _make_room(self, steady_s: float) -> None:
        """The one that was not heard of for longest ends, if nothing of it is computed."""
        if len(self._lives) < self._config.max_lives:
            return
        for live in itertools.islice(self._lives, _LOOKED_AT):
            if not any(unit.running for unit in live.open_units.values()):
                self.idled += 1
                self._stop(live, steady_s)
                return

    def _open(self, live: Live, unit: str, kind: Kind, steady_s: float) -> OpenUnit:
        if live not in self._lives:  # ended, and goes on all the same: as another one, unnamed
            live.began_s, live.ended_s, live.last = steady_s, live.attained_s, True
            live.runs = []
        opened = live.open_units.get(unit)
        if opened is None:
            opened = live.open_units[unit] = OpenUnit(unit, kind, steady_s)
            self._shown(live)
        return opened

    def _shown(self, live: Live) -> None:
        live.shown += 1
        self._prospects.pop(live, None)

    def _release(self, live: Live, unit: str, run: str, steady_s: float, *, failed: bool) -> bool:
        if self._held.pop((live, unit, run), None) is None:
            return False
        opened = live.open_units[unit]
        del opened.held[run]
        opened.failed = opened.failed or failed
        self._close(live, opened, steady_s)
        return True

    def _stop(self, live: Live, steady_s: float) -> None:
        live.last = True
        for unit in list(live.open_units.values()):
            for run in unit.held:
                del self._held[live, unit.unit, run]
            unit.held.clear()
            self._close(live, unit, steady_s)
        if not live.open_units:
            self._end(live)

    def _close(self, live: Live, unit: OpenUnit, steady_s: float) -> None:
        """Ends ``unit`` if nothing of it is under way, and ``live`` if that was the last of it."""
        if unit.running or unit.held:
            return
        del live.open_units[unit.unit]
        run = UnitRun(
            unit.unit,
            unit.kind,
            tuple(unit.calls),
            steady_s - unit.began_s,
            unit.failed,
            unit.began_s - live.began_s,
        )
        if len(live.runs) < MOST_RUNS:
            live.runs.append(run)
        else:
            live.runs[-1] = _longer(live.runs[-1], run)
        live.ended_s += unit.attained_s
        self._shown(live)
        self._heard(live, steady_s)
        if live.last and not live.open_units:
            self._end(live)

    def _end(self, live: Live) -> None:
        if live not in self._lives:
            return
        del self._lives[live]
        self._prospects.pop(live, None)
        if self._named.get((live.key, live.instance)) is live:
            del self._named[live.key, live.instance]
        if live.runs:
            self._classes.add(live.key, Trace(tuple(live.runs)))


def _attain(live: Live, unit: OpenUnit, call: OpenCall, cost_s: float) -> None:
    more_s = cost_s - call.attained_s
    call.attained_s = cost_s
    unit.attained_s += more_s
    live.attained_s += more_s


def _keep(calls: list[Call], done: Call) -> None:
    if len(calls) < MOST_CALLS:
        calls.append(done)
    else:
        had = calls[-1]
        calls[-1] = Call(
            had.prompt_tokens + done.prompt_tokens,
            had.output_tokens + done.output_tokens,
            had.cached_tokens + done.cached_tokens,
        )


def _longer(run: UnitRun, later: UnitRun) -> UnitRun:
    calls = list(run.calls)
    for call in later.calls:
        _keep(calls, call)
    seconds = max(run.seconds, later.began_s + later.seconds - run.began_s)
    failed = run.failed or later.failed
    return replace(run, calls=tuple(calls), seconds=seconds, failed=failed)
