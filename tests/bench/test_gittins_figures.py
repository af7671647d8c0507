"""Rows and summary, from outcomes that are small enough to reckon."""

from __future__ import annotations

import pytest

from hecate.bench.gittins.figures import cells, p99_ratios, rows, summary
from hecate.bench.gittins.matrix import ALL_POLICIES, LOOSE, TIGHT, Done, Found, Setting


def _found(policy: str, factor: float, load: float = 0.9, seed: int = 0) -> Found:
    done = (
        Done("short", 10.0 * factor, 5.0, TIGHT),
        Done("long", 30.0 * factor, 20.0, LOOSE),
    )
    return Found(Setting("poisson", load, seed), policy, done)


FACTORS = dict.fromkeys(ALL_POLICIES, 0.5) | {
    "request_fcfs": 1.0,
    "gittins": 0.22,
    "oracle": 0.2,
    "las": 0.25,
    "sjf": 0.24,
}


def test_the_summary_is_of_the_worst_setting_that_is_judged() -> None:
    found = [
        _found(policy, factor, seed=seed) for policy, factor in FACTORS.items() for seed in (0, 1)
    ]
    found += [
        _found(policy, factor, 1.1) for policy, factor in (FACTORS | {"gittins": 0.21}).items()
    ]
    found += [_found(policy, 1.0, 0.7) for policy in FACTORS]
    table = cells(found)
    assert len(table["poisson", 0.9]["gittins"].done) == 4
    got = summary(table)
    assert got["mean_cut_vs_fcfs"] == got["p95_cut_vs_fcfs"] == pytest.approx(0.78)
    assert got["gap_to_oracle"] == pytest.approx(0.1)
    assert got["vs_las"] == pytest.approx(1 - 0.22 / 0.25)
    assert got["vs_sjf"] == pytest.approx(1 - 0.22 / 0.24)
    assert got["oracle_mean_cut_vs_fcfs"] == pytest.approx(0.8)
    assert got["class_p99_vs_fcfs"] == pytest.approx(0.22)


def test_a_row_has_deadlines_classes_and_fairness() -> None:
    table = cells([_found("request_fcfs", 1.0), _found("gittins", 0.55)])
    baseline, gittins = rows(table)
    assert baseline["tight"] == 0.0 and baseline["loose"] == 1.0
    assert gittins["tight"] == 1.0  # 1.1 times what it takes alone
    assert baseline["slowdown"] == pytest.approx(1.75)
    assert baseline["fairness"] == pytest.approx(3.5**2 / (2 * (2.0**2 + 1.5**2)))
    assert gittins["mean_cut"] == pytest.approx(0.45) and gittins["mean_s"] == pytest.approx(11.0)
    policies = table["poisson", 0.9]
    assert p99_ratios(policies["gittins"], policies["request_fcfs"]) == pytest.approx(
        {"short": 0.55, "long": 0.55}
    )
