"""Who is under way, and what their classes did before: the owner of both.

The runtime tells it what happens, in any order that a network makes of it; what can no longer be,
such as the end of a tool that had failed of its timeout, is left out. ``now_s`` is any clock of
the caller's, the same for all calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from serving.scheduling.applications.config import HistoryConfig
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.graph import PDGraph
from serving.scheduling.applications.live import ClassKey, Live, OpenCall, OpenUnit
from serving.scheduling.applications.prospects import Prospect
from serving.scheduling.applications.steady import Steady
from serving.scheduling.applications.tags import Tags
from serving.scheduling.applications.traces import Call, Kind, Trace, UnitRun


class Book:
    """Owner of the classes' graphs and of the instances under way, whose ``Prospects`` it gives.

    A request: ``begin``, ``call_started``, ``served`` as it is computed, ``call_ended``. A tool:
    ``begin`` (with the tags that its caller gives), ``unit_started``, ``unit_ended``. Both may go
    on side by side within one instance and one unit. ``tick`` now and then.
    """

    def __init__(self, config: HistoryConfig, rates: Callable[[], Rates]) -> None:
        """``rates``: what work costs now."""
        self._config = config
        self._rates = rates
        self._steady = Steady()
        self._lives: dict[Live, None] = {}  # the longest unheard of first
        self._named: dict[tuple[ClassKey, str], Live] = {}
        self._graphs: dict[ClassKey, PDGraph] = {}
        self._prospects: dict[Live, Prospect] = {}
        self.hung = 0
        self.idled = 0

    @property
    def lives(self) -> Collection[Live]:
        """All instances under way."""
        return self._lives.keys()

    @property
    def graphs(self) -> Mapping[ClassKey, PDGraph]:
        return MappingProxyType(self._graphs)

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
                unit.calls.append(done)
                self._close(live, unit, steady_s)

    def unit_started(
        self, live: Live, unit: str, kind: Kind, now_s: float, *, run: str = ""
    ) -> None:
        """A unit begins by hand, as tools do. ``run``: tells runs that go on side by side apart."""
        steady_s = self._steady.at(now_s)
        self._open(live, unit, kind, steady_s).held[run] = steady_s
        self._heard(live, steady_s)

    def unit_ended(
        self, live: Live, unit: str, now_s: float, *, run: str = "", failed: bool = False
    ) -> bool:
        """Whether that run was still going on."""
        steady_s = self._steady.at(now_s)
        opened = live.open_units.get(unit)
        if opened is None or opened.held.pop(run, None) is None:
            return False
        opened.failed = opened.failed or failed
        self._close(live, opened, steady_s)
        return True

    def end(self, live: Live, now_s: float) -> None:
        """``live`` ends: what was begun by hand now, requests under way when they are answered."""
        steady_s = self._steady.at(now_s)
        live.last = True
        for unit in list(live.open_units.values()):
            unit.held.clear()
            self._close(live, unit, steady_s)
        if not live.open_units:
            self._end(live)

    def tick(self, now_s: float) -> None:
        """Tools that hang fail, and instances that are idle end."""
        steady_s = self._steady.at(now_s)
        for live in list(self._lives):
            for unit in list(live.open_units.values()):
                overdue = [
                    run
                    for run, began_s in unit.held.items()
                    if steady_s - began_s >= self._config.hang_s
                ]
                for run in overdue:
                    self.hung += 1
                    unit.failed = True
                    del unit.held[run]
                if overdue:
                    self._close(live, unit, steady_s)
            if not live.open_units and steady_s - live.seen_s >= self._config.idle_s:
                self.idled += 1
                self._end(live)

    def prospect(self, live: Live) -> Prospect:
        """See ``Prospects``."""
        found = self._prospects.get(live)
        if found is None:
            graph = self._graphs.get(live.key)
            if graph is None:
                graph = PDGraph(self._config.window_traces, self._config.enough_traces)
            found = graph.prospect(live, self._rates())
            if live in self._lives:
                self._prospects[live] = found
        return found

    def _heard(self, live: Live, steady_s: float) -> None:
        live.seen_s = steady_s
        self._lives.pop(live, None)
        self._lives[live] = None

    def _open(self, live: Live, unit: str, kind: Kind, steady_s: float) -> OpenUnit:
        opened = live.open_units.get(unit)
        if opened is None:
            opened = live.open_units[unit] = OpenUnit(unit, kind, steady_s)
            self._prospects.pop(live, None)
        return opened

    def _close(self, live: Live, unit: OpenUnit, steady_s: float) -> None:
        """Ends ``unit`` if nothing of it is under way, and ``live`` if that was the last of it."""
        if unit.running or unit.held:
            return
        del live.open_units[unit.unit]
        seconds = steady_s - unit.began_s
        began_s = unit.began_s - live.began_s
        live.runs.append(
            UnitRun(unit.unit, unit.kind, tuple(unit.calls), seconds, unit.failed, began_s)
        )
        live.ended_s += unit.attained_s
        self._prospects.pop(live, None)
        if live in self._lives:
            self._heard(live, steady_s)
        if live.last and not live.open_units:
            self._end(live)

    def _end(self, live: Live) -> None:
        if live not in self._lives:
            return
        del self._lives[live]
        self._prospects.pop(live, None)
        if live.instance:
            del self._named[live.key, live.instance]
        if live.runs:
            graph = self._graphs.get(live.key)
            if graph is None:
                config = self._config
                graph = PDGraph(config.window_traces, config.enough_traces)
                self._graphs[live.key] = graph
            graph.add(Trace(tuple(live.runs)))


def _attain(live: Live, unit: OpenUnit, call: OpenCall, cost_s: float) -> None:
    more_s = cost_s - call.attained_s
    call.attained_s = cost_s
    unit.attained_s += more_s
    live.attained_s += more_s
