"""What people get to see of applications: each class's graph, and who is under way."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.applications.release import Asked
from serving.scheduling.applications.columns import unpack
from serving.scheduling.applications.graph import PDGraph
from serving.scheduling.applications.live import Live
from serving.scheduling.applications.prospects import Prospect
from serving.scheduling.applications.traces import Call, UnitRun

BINS = 12
NEWEST = 200  # traces that a picture is drawn from


@dataclass
class _Unit:
    kind: str
    runs: list[UnitRun] = field(default_factory=list)
    traces: int = 0


def graph(name: str, history: PDGraph, work_s: Callable[[Call], float]) -> dict[str, Any]:
    """A class by its newest traces: units with their distributions, and which one follows which.

    ``work_s``: seconds of the device of a call. The start and the end are the unit "".
    """
    drawn = [unpack(packed, history.units) for packed in history.packed[-NEWEST:]]
    units: dict[str, _Unit] = {}
    followed: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for trace in drawn:
        before = ""
        for run in trace.runs:
            unit = units.setdefault(run.unit, _Unit(run.kind.value))
            unit.runs.append(run)
            followed[before][run.unit] += 1
            before = run.unit
        followed[before][""] += 1
        for unit_name in {run.unit for run in trace.runs}:
            units[unit_name].traces += 1
    totals = [sum(work_s(call) for run in trace.runs for call in run.calls) for trace in drawn]
    return {
        "class": name,
        "instances": len(history),
        "device_s": spread(totals),
        "units": [_unit(unit_name, unit, len(drawn)) for unit_name, unit in units.items()],
        "edges": [
            {"from": before, "to": after, "probability": count / sum(found.values())}
            for before, found in followed.items()
            for after, count in found.most_common()
        ],
    }


def _unit(name: str, unit: _Unit, traces: int) -> dict[str, Any]:
    calls = [call for run in unit.runs for call in run.calls]
    told: dict[str, Any] = {
        "unit": name,
        "kind": unit.kind,
        "runs": len(unit.runs),
        "share": unit.traces / traces,
        "failed": sum(run.failed for run in unit.runs),
        "seconds": spread([run.seconds for run in unit.runs]),
    }
    if calls:
        told["calls"] = spread([len(run.calls) for run in unit.runs])
        told["prompt_tokens"] = spread([call.prompt_tokens for call in calls])
        told["output_tokens"] = spread([call.output_tokens for call in calls])
    return told


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Mean, quantiles and a histogram from the least to the most; empty for no values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    low, high = ordered[0], ordered[-1]
    counts = [0] * BINS
    for value in ordered:
        at = int((value - low) / (high - low) * BINS) if high > low else 0
        counts[min(at, BINS - 1)] += 1
    return {
        "mean": sum(ordered) / len(ordered),
        **{f"p{percent}": _quantile(ordered, percent / 100) for percent in (10, 50, 90)},
        "least": low,
        "most": high,
        "histogram": counts,
    }


def instance(
    live: Live, asked: Sequence[Asked], prospect: Prospect, position: int | None, now_s: float
) -> dict[str, Any]:
    """One under way. ``position``: of its most urgent request among all, from 1; None where it has
    none, as while a tool runs."""
    since_s = live.attained_s - prospect.attained_s
    left = [max(0.0, float(need_s) - since_s) for need_s in prospect.device_s]
    return {
        "class": live.key.name,
        "id": live.instance,
        "age_s": now_s - live.arrived_s,
        "attained_s": live.attained_s,
        "deadline_in_s": None if math.isinf(live.deadline_s) else live.deadline_s - now_s,
        "units_done": len(live.runs),
        "open": sorted(live.open_units),
        "waiting": sum(not each.running for each in asked),
        "running": sum(each.running for each in asked),
        "position": position,
        "rank": min((each.place.rank for each in asked), default=None),
        "left_s": sum(left) / len(left) if left else None,
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
