"""How the units of a class follow each other, and how long they take."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from serving.scheduling.applications.traces import Kind, Trace

START = ""

Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """``after``: of each unit, ``START`` before the first, how often which one came next; what is
    missing to 1 ended there. ``seconds``: of each unit, sorted. ``kinds``: on which backend it was,
    the last time."""

    after: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, Seconds]
    kinds: Mapping[str, Kind]


NO_SHAPE = Shape(MappingProxyType({}), MappingProxyType({}), MappingProxyType({}))


def shape_of(traces: Iterable[Trace]) -> Shape:
    """Of a class; units in the order in which they began."""
    follows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    times: Counter[str] = Counter()
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    kinds: dict[str, Kind] = {}
    for trace in traces:
        before = START
        for run in trace.runs:
            follows[before][run.unit] += 1
            times[before] += 1
            if not run.failed:
                seconds[run.unit].append(run.seconds)
            kinds[run.unit] = run.kind
            before = run.unit
        times[before] += 1
    after = {
        unit: {name: count / times[unit] for name, count in sorted(found.items())}
        for unit, found in follows.items()
    }
    return Shape(after, {unit: np.sort(np.array(each)) for unit, each in seconds.items()}, kinds)
