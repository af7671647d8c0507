"""What became of instances under policies -> rows and summary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from hecate.bench.gittins.matrix import ORACLE, REQUEST_FCFS, Done, Found

GITTINS, LAS, SJF = "gittins", "las", "sjf"
JUDGED = (0.9, 1.1)
"""Loads that the summary is of."""
COLUMNS = {
    "arrivals": "arrivals",
    "load": "load",
    "policy": "policy",
    "mean_s": "mean s",
    "p50_s": "P50",
    "p95_s": "P95",
    "p99_s": "P99",
    "mean_cut": "mean cut",
    "p95_cut": "P95 cut",
    "slowdown": "slowdown",
    "worst_class": "worst class",
    "worst_p99_ratio": "its P99 / FCFS",
    "tight": "tight",
    "modest": "modest",
    "loose": "loose",
    "fairness": "fairness",
}


@dataclass(frozen=True)
class Cell:
    """All seeds together of one policy in one setting."""

    arrivals: str
    load: float
    policy: str
    done: tuple[Done, ...]

    @property
    def seconds(self) -> Sequence[float]:
        return [each.seconds for each in self.done]

    @property
    def mean_s(self) -> float:
        return float(np.mean(self.seconds))

    def percentile_s(self, percent: float) -> float:
        return float(np.percentile(self.seconds, percent))

    def slowdowns(self) -> dict[str, list[float]]:
        """By class: how many times as long as alone each took."""
        found: dict[str, list[float]] = {}
        for each in self.done:
            found.setdefault(each.name, []).append(each.slowdown)
        return found

    @property
    def fairness(self) -> float:
        """Jain's index over the classes' mean slowdowns: 1 where all are slowed down alike."""
        means = np.array([np.mean(each) for each in self.slowdowns().values()])
        return float(means.sum() ** 2 / (means.size * (means**2).sum()))


def cells(found: Iterable[Found]) -> dict[tuple[str, float], dict[str, Cell]]:
    """By setting and policy."""
    pooled: dict[tuple[str, float], dict[str, list[Done]]] = {}
    for each in found:
        setting = pooled.setdefault((each.setting.arrivals, each.setting.load), {})
        setting.setdefault(each.policy, []).extend(each.done)
    return {
        (arrivals, load): {
            policy: Cell(arrivals, load, policy, tuple(done)) for policy, done in policies.items()
        }
        for (arrivals, load), policies in pooled.items()
    }


def p99_ratios(cell: Cell, baseline: Cell) -> dict[str, float]:
    """By class: the P99 of its slowdown over what that is under ``baseline``."""
    before = baseline.slowdowns()
    return {
        name: float(np.percentile(each, 99) / np.percentile(before[name], 99))
        for name, each in cell.slowdowns().items()
    }


def rows(table: Mapping[tuple[str, float], Mapping[str, Cell]]) -> list[dict[str, JsonValue]]:
    """A row for each setting and policy; by class beside it, in the JSON alone."""
    return [
        _row(cell, policies[REQUEST_FCFS])
        for policies in table.values()
        for cell in policies.values()
    ]


def _row(cell: Cell, baseline: Cell) -> dict[str, JsonValue]:
    ratios = p99_ratios(cell, baseline)
    worst = max(ratios, key=lambda name: ratios[name])
    met: dict[str, list[bool]] = {}
    for each in cell.done:
        met.setdefault(each.deadline, []).append(each.met)
    classes: dict[str, JsonValue] = {
        name: {
            "mean_slowdown": float(np.mean(each)),
            "p99_slowdown": float(np.percentile(each, 99)),
            "p99_ratio": ratios[name],
        }
        for name, each in cell.slowdowns().items()
    }
    return {
        "arrivals": cell.arrivals,
        "load": cell.load,
        "policy": cell.policy,
        "mean_s": cell.mean_s,
        "p50_s": cell.percentile_s(50),
        "p95_s": cell.percentile_s(95),
        "p99_s": cell.percentile_s(99),
        "mean_cut": 1 - cell.mean_s / baseline.mean_s,
        "p95_cut": 1 - cell.percentile_s(95) / baseline.percentile_s(95),
        "slowdown": float(np.mean([each.slowdown for each in cell.done])),
        "worst_class": worst,
        "worst_p99_ratio": ratios[worst],
        **{deadline: float(np.mean(each)) for deadline, each in met.items()},
        "deadlines": float(np.mean([each.met for each in cell.done])),
        "fairness": cell.fairness,
        "classes": classes,
        "simulated": True,
    }


def summary(table: Mapping[tuple[str, float], Mapping[str, Cell]]) -> dict[str, float]:
    """The worst setting of each, at the loads that are judged."""
    judged = [policies for (_, load), policies in table.items() if load in JUDGED]

    def worst_cut(baseline: str, percent: float | None = None) -> float:
        return min(
            1 - _of(policies[GITTINS], percent) / _of(policies[baseline], percent)
            for policies in judged
        )

    return {
        "mean_cut_vs_fcfs": worst_cut(REQUEST_FCFS),
        "p95_cut_vs_fcfs": worst_cut(REQUEST_FCFS, 95),
        "oracle_mean_cut_vs_fcfs": min(
            1 - policies[ORACLE].mean_s / policies[REQUEST_FCFS].mean_s for policies in judged
        ),
        "gap_to_oracle": max(
            policies[GITTINS].mean_s / policies[ORACLE].mean_s - 1 for policies in judged
        ),
        "vs_las": worst_cut(LAS),
        "vs_sjf": worst_cut(SJF),
        "class_p99_vs_fcfs": max(
            max(p99_ratios(policies[GITTINS], policies[REQUEST_FCFS]).values())
            for policies in judged
        ),
    }


def _of(cell: Cell, percent: float | None) -> float:
    return cell.mean_s if percent is None else cell.percentile_s(percent)
