"""What the instances of one class did: its probabilistic demand graph (2506.14851)."""

from __future__ import annotations

from collections import deque

import numpy as np

from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.live import Live
from serving.scheduling.applications.prospects import Prospect
from serving.scheduling.applications.traces import Trace, UnitRun

NOTHING = np.zeros(0)


class PDGraph:
    """The newest ``window`` traces of a class."""

    def __init__(self, window: int, enough: int) -> None:
        self._traces: deque[Trace] = deque(maxlen=window)
        self._enough = enough

    def __len__(self) -> int:
        return len(self._traces)

    @property
    def traces(self) -> tuple[Trace, ...]:
        return tuple(self._traces)

    def add(self, trace: Trace) -> None:
        self._traces.append(trace)

    def prospect(self, live: Live, rates: Rates) -> Prospect:
        """Of an instance of this class; empty until ``enough`` traces are there."""
        if len(self._traces) < self._enough:
            return Prospect(live.ended_s, NOTHING, NOTHING)
        done = len(live.runs)
        rest = [trace.runs[done:] for trace in self._traces if len(trace.runs) >= done]
        work = [sum(rates.work_s(call) for run in runs for call in run.calls) for runs in rest]
        path = [sum(_alone_s(run, rates) for run in runs) for runs in rest]
        return Prospect(live.ended_s, np.sort(np.array(work)), np.sort(np.array(path)))


def _alone_s(run: UnitRun, rates: Rates) -> float:
    if run.calls:
        return max(rates.alone_s(call) for call in run.calls)
    return run.seconds
