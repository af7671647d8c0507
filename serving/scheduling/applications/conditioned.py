"""What an instance may still need, given what it has shown.

Whole traces are drawn from, not units one by one, so that what hangs together within an instance
does so here (2506.14851, section 4.2): of the points in others' traces that are like where the
instance is now, those whose correlated features are nearest to its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from serving.scheduling.applications.columns import KINDS, Columns, Floats, Ints
from serving.scheduling.applications.points import NONE, Points
from serving.scheduling.applications.prospects import Samples
from serving.scheduling.applications.traces import Kind

CORRELATED = 0.5
_LEAST_SCORE = 4.0  # deviations from no correlation, among so many pairs that are looked at
_NEAREST = 0.1  # of the points that are like this one
_BACKGROUND = 8  # one in so many samples is of any such point: the nearest may all be wrong
_MOST_POINTS = 4000
_STATES_KEPT = 256
_LLM = KINDS.index(Kind.LLM)

Feature = tuple[int, int]  # a unit's number and which of its features; see features_of
SO_FAR = (-1, 0)  # the work that ended units had
OPENED = (-2, 0)  # tokens of a prompt in the unit that is open


def features_of(prompt: Floats, output: Floats, calls: Floats, seconds: Floats) -> Floats:
    """Of runs, ``[R, 4]``: tokens of a prompt and of its answer, in the mean of a run's calls, how
    many these were, and the seconds that anything but an engine took; as logarithms, since they are
    products of many influences."""
    each = np.maximum(calls, 1.0)
    return np.log1p(np.stack([prompt / each, output / each, calls, seconds], axis=1))


@dataclass(frozen=True)
class Shown:
    """Of an instance: ``signature`` of the units that ended (the sum of theirs), the ``last`` of
    them and how many ``times`` it ended, the units that are ``opened``, its ``features``, and the
    seconds of the device that its ended units had."""

    signature: int
    last: int
    times: int
    opened: frozenset[int]
    features: Mapping[Feature, float]
    ended_s: float


@dataclass(frozen=True, eq=False)
class Rest:
    """``at``: the points that it is drawn from; their ``work_s`` and ``path_s``, each sorted."""

    at: Ints
    work_s: Samples
    path_s: Samples


@dataclass(frozen=True, eq=False)
class _State:
    """The points that are like one another. ``chosen``: features that tell what is to come, and of
    each its ``mean``, ``deviation`` and ``weight``; ``scaled``: of all points, ``[n, f]``."""

    rest: Rest
    chosen: tuple[Feature, ...]
    mean: Floats
    deviation: Floats
    weight: Floats
    scaled: Floats


class Conditioned:
    """Of one set of traces."""

    def __init__(self, kept: Columns, points: Points, enough: int) -> None:
        self._kept = kept
        self._points = points
        self._enough = enough
        self._runs = _features_of_runs(kept)
        self._states: OrderedDict[tuple[object, ...], _State | None] = OrderedDict()
        self._starts = np.flatnonzero(points.last == NONE)

    def rest(self, shown: Shown) -> Rest | None:
        """None where no trace went on for as long. What like instances share is the same object."""
        for level, key in self._levels(shown):
            state = self._state(level, key, shown)
            if state is not None:
                return self._nearest(state, shown)
        return self._longer(shown.ended_s)

    def _levels(self, shown: Shown) -> Iterator[tuple[str, tuple[object, ...]]]:
        """Ever less alike: the same units so far; the same last one, as often; the same last one;
        the same one open."""
        if shown.last == NONE or shown.signature:
            yield "all", (shown.signature, shown.last == NONE)
        if shown.last >= 0:
            yield "times", (shown.last, shown.times)
            yield "last", (shown.last,)
        if shown.opened:
            yield "open", ()

    def _state(self, level: str, key: tuple[object, ...], shown: Shown) -> _State | None:
        """None where fewer than ``enough`` are alike."""
        name = (level, *key, shown.opened)
        if name in self._states:
            self._states.move_to_end(name)
            return self._states[name]
        points = self._points
        if level == "all":
            like = points.shown == np.uint64(shown.signature)
        elif level == "open":
            like = np.ones(points.shown.size, dtype=bool)
        else:
            like = points.last == shown.last
            if level == "times":
                like &= points.times == shown.times
        if shown.opened:
            like &= np.isin(points.next, list(shown.opened))
        at = np.flatnonzero(like)[-_MOST_POINTS:]
        state = self._learned(at, shown) if at.size >= self._enough else None
        self._states[name] = state
        if len(self._states) > _STATES_KEPT:
            self._states.popitem(last=False)
        return state

    def _learned(self, at: Ints, shown: Shown) -> _State:
        """Which of the features that ``shown`` has are correlated with what is to come."""
        points = self._points
        rest = Rest(at, np.sort(points.work_s[at]), np.sort(points.path_s[at]))
        targets = np.log1p(
            np.stack([points.work_s[at], points.path_s[at], points.next_work_s[at]], axis=1)
        )
        names = tuple(shown.features)
        values = self._values(at, names)
        there = ~np.isnan(values)
        count = there.sum(axis=0)
        mean = np.where(there, values, 0.0).sum(axis=0) / np.maximum(count, 1)
        centred = np.where(there, values - mean, 0.0)
        deviation = np.sqrt((centred**2).sum(axis=0) / np.maximum(count, 1))
        spread = targets - targets.mean(axis=0)
        # Of absent values both factors are left out, as if the pair were not there.
        both = there.T.astype(np.float64) @ spread**2
        norm = np.sqrt((centred**2).sum(axis=0)[:, None] * both)
        rho = np.abs(centred.T @ spread) / np.maximum(norm, 1e-12)
        rho[norm < 1e-9] = 0.0
        strength = rho.max(axis=1, initial=0.0)
        least = np.maximum(CORRELATED, _LEAST_SCORE / np.sqrt(np.maximum(count, 1)))
        chosen = np.flatnonzero((strength > least) & (count >= self._enough) & (deviation > 1e-9))
        return _State(
            rest,
            tuple(names[each] for each in chosen),
            mean[chosen],
            deviation[chosen],
            strength[chosen],
            centred[:, chosen] / np.maximum(deviation[chosen], 1e-9),
        )

    def _values(self, at: Ints, names: tuple[Feature, ...]) -> Floats:
        """Features at these points, ``[n, f]``, NaN where they have none."""
        points, kept = self._points, self._kept
        found = np.full((at.size, len(names)), np.nan)
        begin = kept.trace_at[points.trace[at]]
        latest: dict[int, Ints] = {}
        for column, (unit, which) in enumerate(names):
            if (unit, which) == SO_FAR:
                total = points.work_s[begin + points.trace[at]]
                found[:, column] = np.log1p(np.maximum(total - points.work_s[at], 0.0))
            elif (unit, which) == OPENED:
                after = points.after[at]
                found[:, column] = np.where(after >= 0, self._runs[after, 0], np.nan)
            else:
                if unit not in latest:
                    runs = np.where(kept.unit == unit, np.arange(kept.unit.size), NONE)
                    latest[unit] = np.maximum.accumulate(runs)[points.before[at]]
                run = latest[unit]
                here = (points.before[at] >= 0) & (run >= begin)
                found[here, column] = self._runs[run[here], which]
        return found

    def _nearest(self, state: _State, shown: Shown) -> Rest:
        all_of_it = state.rest
        nearest = max(self._enough, int(_NEAREST * all_of_it.at.size))
        if not state.chosen or all_of_it.at.size <= nearest:
            return all_of_it
        own = np.array([shown.features.get(feature, np.nan) for feature in state.chosen])
        off = state.scaled - np.nan_to_num((own - state.mean) / state.deviation)
        near = np.argpartition(off**2 @ state.weight, nearest)[:nearest]
        at = all_of_it.at[near]
        any_of_it = np.linspace(0, all_of_it.at.size - 1, nearest // _BACKGROUND + 2)[1:-1]
        drawn = any_of_it.astype(np.int64)
        points = self._points
        return Rest(
            at,
            np.sort(np.concatenate([points.work_s[at], all_of_it.work_s[drawn]])),
            np.sort(np.concatenate([points.path_s[at], all_of_it.path_s[drawn]])),
        )

    def _longer(self, ended_s: float) -> Rest | None:
        """Of the traces that had more than ``ended_s`` in all, what was above it."""
        work_s = self._points.work_s[self._starts]
        at = self._starts[work_s > ended_s]
        if not at.size:
            return None
        order = np.argsort(self._points.work_s[at])
        rest_s = self._points.work_s[at][order] - ended_s
        share = rest_s / self._points.work_s[at][order]
        return Rest(at, rest_s, np.sort(self._points.path_s[at][order] * share))


def _features_of_runs(kept: Columns) -> Floats:
    prompt, output = np.zeros(kept.unit.size), np.zeros(kept.unit.size)
    np.add.at(prompt, kept.run, kept.prompt)
    np.add.at(output, kept.run, kept.output)
    seconds = np.where(kept.kind == _LLM, 0.0, kept.seconds)
    return features_of(prompt, output, kept.calls.astype(np.float64), seconds)
