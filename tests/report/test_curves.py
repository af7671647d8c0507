"""Curves over steps, and over how many steps a line speaks."""

import numpy as np
import pytest

from hecate.report.curves import MOST_POINTS, Training, charts, curve, rounded
from hecate.report.records import Logged, Metrics, Start


def metrics(*lines, evaluations=()):
    return Metrics(
        tuple(Logged(step, 0.0, values, layers) for step, values, layers in lines),
        tuple(Logged(step, 0.0, values, {}) for step, values in evaluations),
    )


def chart(key, *lines, evaluations=()):
    found = metrics(*lines, evaluations=evaluations)
    return {each.key: each for each in charts(found, Training.of(found, [Start(0)]))}.get(key)


@pytest.mark.parametrize(
    ("steps", "starts", "intervals", "begun"),
    [
        ((10, 20, 25), (0,), [10, 10, 5], 0),
        ((10, 20, 30), (0, 20), [10, 10, 10], 0),
        ((10, 20, 40), (0, 33), [10, 10, 7], 0),  # what it lost between 20 and 33 was not logged
        ((110, 120), (0, 100), [10, 10], 100),
        ((110, 120), (), [10, 10], 100),
        ((7,), (), [7], 0),
    ],
)
def test_how_many_steps_a_line_speaks_of(steps, starts, intervals, begun):
    training = Training.of(metrics(*((s, {}, {}) for s in steps)), [Start(s) for s in starts])
    assert training.intervals.tolist() == intervals and training.begun == begun


def test_few_lines_are_points():
    found = chart("loss", (1, {"loss": 4.0}, {}), (2, {"loss": 2.0}, {}))
    (one,) = found.curves
    assert (one.x, one.y, one.low, one.high) == ([1, 2], [4, 2], [], [])


def test_many_lines_are_means_in_a_band():
    steps = np.arange(1, 2 * MOST_POINTS + 1)
    found = curve("x", steps, steps.astype(float))
    assert len(found.x) == MOST_POINTS
    assert (found.y[0], found.low[0], found.high[0]) == (1.5, 1, 2)
    assert found.x[0] == 1.5 and found.y[-1] == 2 * MOST_POINTS - 0.5


def test_a_loss_that_was_not_finite_is_a_hole():
    found = chart("loss", *((s, {"loss": v}, {}) for s, v in ((1, 3.0), (2, np.nan), (3, 1.0))))
    assert found.curves[0].y == [3, None, 1]


def test_held_out_losses_are_dots():
    found = chart("loss", (5, {"loss": 3.0}, {}), evaluations=[(5, {"eval/loss": 2.5})])
    held_out = found.curves[1]
    assert held_out.dots and held_out.x == [5] and held_out.y == [2.5]


def test_what_was_added_up_is_shown_by_step():
    lines = [
        (10, {"gather/bytes": 50.0}, {"load/idle_copies": np.array([10.0, 20.0])}),
        (15, {"gather/bytes": 50.0}, {"load/idle_copies": np.array([0.0, 5.0])}),
    ]
    assert chart("bytes", *lines).curves[0].y == [5, 10]
    assert chart("missed", *lines).curves[0].y == [3, 1]


def test_changes_of_owners_are_bars_over_their_interval():
    lines = [(10, {"load/moved_experts": 4.0}, {}), (20, {"load/moved_experts": 0.0}, {})]
    found = chart("moved", *lines)
    assert found.edges == [0, 10, 20] and found.curves[0].y == [4, 0]


def test_what_was_zero_throughout_or_is_not_there_has_no_chart():
    line = (1, {"loss": 1.0, "auxiliary_loss": 0.0}, {})
    assert chart("auxiliary", line) is None and chart("memory", line) is None


def test_numbers_of_other_versions_are_drawn_by_their_names():
    line = (1, {"loss": 1.0, "noise_scale": 7.0, "a/b": 1.0, "seconds/data": 1.0}, {})
    assert chart("other-0", line).title == "noise_scale"
    assert chart("other-1", line).title == "a/b" and chart("other-2", line) is None


def test_numbers_are_cut_to_what_is_seen():
    assert rounded(np.array([1.23456789, 1e-9, np.inf, 123456789.0])) == [
        1.2346,
        1e-9,
        None,
        123460000,
    ]
