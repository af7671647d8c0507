"""The planner's benchmark on toy sizes, and its place among the benchmarks."""

from __future__ import annotations

import numpy as np

from hecate.bench import BENCHES
from hecate.bench.planner import LARGE, MEDIUM, Case, bench_planner, measure


def test_it_is_known_by_name() -> None:
    assert BENCHES["planner"] is bench_planner


def test_the_sizes_are_those_of_the_figures() -> None:
    assert (LARGE.num_layers, LARGE.num_experts, len(LARGE.node_of_rank)) == (61, 256, 2048)
    assert (LARGE.hot, LARGE.slots) == (32, 2)
    assert (MEDIUM.num_experts, len(MEDIUM.node_of_rank)) == (64, 32)


def test_loads_are_skewed_and_owners_even() -> None:
    case = Case.of(3, 8, 4, 2, 2, 1)
    loads, owners = case.loads(), case.owners()
    assert np.array_equal(loads, case.loads())
    assert (loads.max(1) > 2 * loads.mean(1)).all()
    assert [np.bincount(row).tolist() for row in owners] == [[2, 2, 2, 2]] * 3


def test_a_row_says_what_was_planned_in_what_time() -> None:
    for rule in ("paper", "predicted"):
        row = measure(rule, Case.of(2, 8, 4, 2, 4, 1), repeats=2, target_ms=1.5)
        assert row["rule"] == rule and row["target_ms"] == 1.5
        assert 0 < row["copies"] <= 2 * 4
        assert abs(row["ms"] - 2 * row["ms_per_layer"]) < 0.01
