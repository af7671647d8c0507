"""Rows and summary from seconds by hand."""

from __future__ import annotations

import pytest

from hecate.bench.margins import (
    Course,
    Standing,
    against_bound,
    hidden_fraction,
    round_seconds,
    rows_of,
    slowest,
    speed_ratios,
    spread,
    summarise,
)


def course(*seconds: float, first: int = 0, every: int = 1) -> Course:
    steps = tuple(range(first, first + every * len(seconds), every))
    zeros = (0,) * len(seconds)
    return Course(steps=steps, seconds=seconds, imbalances=zeros, copies=zeros)


def test_a_step_is_as_slow_as_its_slowest_rank():
    both = slowest([course(1.0, 4.0), course(3.0, 2.0)])
    assert both.seconds == (3.0, 4.0)


def test_ratios_are_within_rounds_and_over_the_steps_that_both_took():
    ours = course(1.0, 2.0, 1.0, 1.0, first=10)
    assert speed_ratios(ours, course(2.0, 2.0, 3.0, 1.0, first=10), 1) == (2.0, 1.0, 3.0, 1.0)
    # rounds of two steps: (2 + 2) / (1 + 2), (3 + 1) / (1 + 1)
    assert speed_ratios(ours, course(2.0, 2.0, 3.0, 1.0, first=10), 2) == (4 / 3, 2.0)
    # a peer that took steps 10 and 12 alone meets our steps 10 and 12
    assert speed_ratios(ours, course(2.0, 3.0, first=10, every=2), 4) == (5 / 2,)
    assert round_seconds(ours, 2) == (1.5, 1.0)


def test_spread_is_the_quartiles():
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)
    assert spread([3.0, 1.0]) == (1.0, 3.0)


TITLES = {
    "ours": "ours",
    "ours_otherwise": "ours, otherwise",
    "ep": "EP",
    "broken": "broken",
    "even": "ceiling",
}


def standing(trace: str, ours: float, ep: float, even: float, *, stable: bool = True) -> Standing:
    courses = {
        "ours": course(ours, ours),
        "ours_otherwise": course(0.01, 0.01),
        "expert_parallel": course(ep, ep),
        "broken": Course(problem="not installed"),
        "even": course(even, even),
    }
    return Standing("m", trace, stable, 1, 1.0, courses)


def test_the_summary_has_the_worst_row_of_each_kind():
    standings = [
        standing("balanced", 1.0, 1.1, 0.9),
        standing("hot_1.5", 1.0, 1.2, 0.8),
        standing("hot_1.9", 1.0, 1.5, 0.95),
        standing("rotating", 1.0, 1.3, 0.7, stable=False),
        standing("burst", 1.0, 0.9, 0.75, stable=False),
        standing("one_hot", 1.0, 2.0, 0.5, stable=False),
        standing("real", 1.0, 1.25, 0.85, stable=False),
    ]
    other = [Standing("n", s.trace, s.stable, 1, 1.0, {}) for s in standings]
    variants = {"ours_otherwise"}
    summary = summarise(
        [*standings, *other], model="m", ours="ours", ceiling="even", variants=variants
    )
    assert summary == pytest.approx(
        {
            "ceiling_share_real": 0.85,
            "ceiling_share_hot": 0.8,
            "ceiling_share_rotating": 0.7,
            "speedup_vs_ep_hot": 1.5,
            "balanced_vs_ep": 1.1,
            "min_margin_stable": 1.1,
            "min_margin_moving": 0.9,
            "ceiling_margin_moving": 0.9 / 0.75,
        }
    )


def test_a_row_says_what_failed_and_how_fast_the_rest_was():
    titles = {**TITLES, "expert_parallel": "EP"}
    rows = rows_of(standing("hot_1.9", 0.5, 1.0, 0.4), titles, ours="ours", ceiling="even")
    by_name = {row["strategy"]: row for row in rows}
    assert by_name["broken"]["status"] == "not installed"
    assert "ms" not in by_name["broken"]
    assert by_name["EP"]["ms"] == 1000
    assert by_name["EP"]["ours_over_it"] == 2
    assert by_name["EP"]["ceiling_share"] == pytest.approx(0.4)
    assert by_name["ours"]["ceiling_share"] == pytest.approx(0.8)


def test_a_sparse_gather_is_held_against_the_fastest_dense_one():
    taken = {
        "dense": {"slow": [9.0, 9.0, 9.0], "fast": [8.0, 1.0, 16.0]},
        "sparse": {"a": [1.5, 1.2, 9.0], "b": [2.0, 2.0, 2.0]},
        "launch": {"a": [0.2, 0.2, 0.2], "b": [0.3, 0.3, 0.3]},
    }
    found = against_bound(taken, 8)
    assert (found["dense"], found["sparse"]) == ("fast", "a")
    assert found["vs_bound"] == pytest.approx((1.5 - 0.2) / (8 / 8))


def test_hidden_is_what_a_step_does_not_show():
    # shown: 0.1, 0.3, 0.2; alone: 1.0
    assert hidden_fraction([1.1, 1.3, 1.2], [1.0, 1.0, 1.0], [0.9, 1.0, 1.5]) == pytest.approx(0.8)
    assert hidden_fraction([1.0], [1.0], [0.5]) == 1.0
