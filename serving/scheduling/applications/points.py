"""Every point of every trace at which a unit had just ended, or none had yet: what the instance had
shown by then, and what was still to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.scheduling.applications.columns import KINDS, Columns, Floats, Ints
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.traces import Kind

NONE = -1
Number = TypeVar("Number", bound=np.number[Any])
_LLM = KINDS.index(Kind.LLM)


@dataclass(frozen=True, eq=False)
class Points:
    """``P = R + T`` of them: point ``r + trace[r]`` is before run ``r``, the next one after it.

    ``shown``: which units had ended, how often each, in any order, as one number; ``last`` and
    ``next``: the units that ended before and after it, or ``NONE``; ``times``: how often ``last``
    had. ``before`` and ``after``: the runs of these. ``work_s``, ``next_work_s``, ``path_s``: what
    was still to come, see ``Prospect``, and of the first in the next run alone.
    """

    trace: Ints
    shown: NDArray[np.uint64]
    last: Ints
    times: Ints
    next: Ints
    before: Ints
    after: Ints
    work_s: Floats
    next_work_s: Floats
    path_s: Floats


def signature(unit: int) -> int:
    """Of one more end of the unit with this number; those of a whole instance are added up, modulo
    2**64. (The finalizer of splitmix64.)"""
    mixed = (unit + 1) * 0x9E3779B97F4A7C15 & _WORD
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _WORD
    return mixed ^ mixed >> 31


_WORD = 2**64 - 1


def points(kept: Columns, rates: Rates) -> Points:
    lengths = np.diff(kept.trace_at)
    traces, runs = lengths.size, kept.unit.size
    begins = kept.trace_at[:-1] + np.arange(traces)  # the first point of each trace
    before = np.arange(runs) + kept.trace  # of run r, and the point after it is one further
    size = runs + traces
    work_s, alone_s = _costs(kept, rates)

    def placed(first: int, at: Ints, values: NDArray[Number]) -> NDArray[Number]:
        column: NDArray[Number] = np.full(size, first, dtype=values.dtype)
        column[at] = values
        return column

    units = int(kept.unit.max(initial=0)) + 1
    marks = np.array([signature(unit) for unit in range(units)], np.uint64)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(marks[kept.unit])])
    shown = sums[1:] - sums[kept.trace_at[kept.trace]]
    done = np.concatenate([[0.0], np.cumsum(work_s)])
    rest = done[kept.trace_at[kept.trace + 1]] - done[:-1]
    reached_s, whole_s = _paths(kept, alone_s)
    path_s = np.zeros(size)
    path_s[begins] = whole_s
    path_s[before + 1] = whole_s[kept.trace] - reached_s
    return Points(
        trace=np.repeat(np.arange(traces), lengths + 1),
        shown=placed(0, before + 1, shown),
        last=placed(NONE, before + 1, kept.unit),
        times=placed(0, before + 1, _occurrences(kept)),
        next=placed(NONE, before, kept.unit),
        before=placed(NONE, before + 1, np.arange(runs)),
        after=placed(NONE, before, np.arange(runs)),
        work_s=placed(0, before, np.maximum(rest, 0.0)),
        next_work_s=placed(0, before, work_s),
        path_s=path_s,
    )


def _costs(kept: Columns, rates: Rates) -> tuple[Floats, Floats]:
    """Of each run: seconds of the device, and from its begin to its end if it waits for nobody."""
    prefill_s = rates.prefill_token_s * kept.fresh
    work_s: Floats = np.zeros(kept.unit.size)
    np.add.at(work_s, kept.run, prefill_s + rates.decode_token_s * kept.output)
    alone_s = np.where(kept.kind == _LLM, 0.0, kept.seconds)
    np.maximum.at(alone_s, kept.run, prefill_s + rates.pace_s * kept.output)
    return work_s, alone_s


def _occurrences(kept: Columns) -> Ints:
    """Of each run, how often its unit had ended in its trace by then."""
    order = np.lexsort((kept.unit, kept.trace))  # stable: runs of one unit stay in order
    unit, trace = kept.unit[order], kept.trace[order]
    first = np.ones(order.size, dtype=bool)
    first[1:] = (unit[1:] != unit[:-1]) | (trace[1:] != trace[:-1])
    at = np.arange(order.size)
    times = np.empty(order.size, dtype=np.int64)
    times[order] = at - np.maximum.accumulate(np.where(first, at, 0)) + 1
    return times


def _paths(kept: Columns, alone_s: Floats) -> tuple[Floats, Floats]:
    """If nothing ever waited for others: when all up to each run had ended, ``[R]``, and when the
    whole trace had, ``[T]``. A run begins as long after the last one that had ended before it as it
    did."""
    ended_s = kept.began_s + kept.seconds
    span_s = float(ended_s.max(initial=0.0)) + 1.0
    offset_s = kept.trace * span_s
    # Runs are in the order in which they ended: the ends of all traces, one after another, are
    # sorted, but for what rounding does.
    ends_s = np.maximum.accumulate(offset_s + ended_s)
    upto = np.searchsorted(ends_s, offset_s + kept.began_s + 1e-6, side="right") - 1
    upto = np.minimum(upto, np.arange(upto.size) - 1)
    follows = upto >= kept.trace_at[kept.trace]
    gap_s = kept.began_s - np.where(follows, ended_s[upto], 0.0)
    finish_s = np.zeros(kept.unit.size + 1)
    reached_s = np.zeros(kept.unit.size)
    lengths = np.diff(kept.trace_at)
    whole_s = np.zeros(lengths.size)
    for place in range(int(lengths.max(initial=0))):
        here = np.flatnonzero(lengths > place)
        run = kept.trace_at[here] + place
        start_s = np.where(follows[run], finish_s[upto[run]], 0.0) + np.maximum(gap_s[run], 0.0)
        finish_s[run] = start_s + alone_s[run]
        whole_s[here] = reached_s[run] = np.maximum(whole_s[here], finish_s[run])
    return reached_s, whole_s
