"""A class's graph as people look at it: its units, what follows them, what they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.scheduling.applications.columns import KINDS, Columns, Floats, Ints
from serving.scheduling.applications.points import NONE, Points
from serving.scheduling.applications.traces import Kind

END = ""  # what follows the last unit
LEVELS = tuple(round(0.05 * step, 2) for step in range(21))
Quantiles = tuple[float, ...]  # at LEVELS; none where nothing was seen


@dataclass(frozen=True)
class UnitView:
    """``share``: of the instances, those that had it; ``runs``: how often each of these. ``next``:
    what follows it, by how likely it is, ``END`` too. ``prompt_tokens`` and ``output_tokens``: of
    single calls; ``calls``: of a run; ``seconds``: of runs that did not fail."""

    unit: str
    kind: Kind
    share: float
    runs: float
    failed: float
    next: dict[str, float]
    calls: Quantiles
    prompt_tokens: Quantiles
    output_tokens: Quantiles
    seconds: Quantiles


@dataclass(frozen=True)
class GraphView:
    """``first``: what instances begin with; ``work_s`` and ``path_s``: of whole ones, see
    ``Prospect``."""

    instances: int
    first: dict[str, float]
    units: tuple[UnitView, ...]
    work_s: Quantiles
    path_s: Quantiles


def view(kept: Columns, points: Points, names: Sequence[str]) -> GraphView:
    starts = points.last == NONE
    units = [_unit(kept, points, names, number) for number in np.unique(kept.unit).tolist()]
    return GraphView(
        instances=int(np.count_nonzero(starts)),
        first=_shares(points.next[starts], names),
        units=tuple(units),
        work_s=_quantiles(points.work_s[starts]),
        path_s=_quantiles(points.path_s[starts]),
    )


def _unit(kept: Columns, points: Points, names: Sequence[str], unit: int) -> UnitView:
    runs = kept.unit == unit
    calls = runs[kept.run]
    traces = np.unique(kept.trace[runs]).size
    ran = int(np.count_nonzero(runs))
    kind = _kind(kept, unit)
    return UnitView(
        unit=names[unit],
        kind=kind,
        share=traces / max(1, kept.trace_at.size - 1),
        runs=ran / traces,
        failed=float(np.mean(kept.failed[runs])),
        next=_shares(points.next[points.last == unit], names),
        calls=_quantiles(kept.calls[runs]) if kind is Kind.LLM else (),
        prompt_tokens=_quantiles(kept.prompt[calls]),
        output_tokens=_quantiles(kept.output[calls]),
        seconds=_quantiles(kept.seconds[runs & ~kept.failed]),
    )


def _kind(kept: Columns, unit: int) -> Kind:
    """As the newest run has it."""
    return KINDS[int(kept.kind[np.flatnonzero(kept.unit == unit)[-1]])]


def _shares(units: Ints, names: Sequence[str]) -> dict[str, float]:
    values, counts = np.unique(units, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {
        END if values[each] == NONE else names[values[each]]: float(counts[each] / units.size)
        for each in order
    }


def _quantiles(values: Floats | Ints) -> Quantiles:
    return tuple(np.quantile(values, LEVELS).tolist()) if values.size else ()
