"""The window of loads: its mean, its length, and what a checkpoint keeps of it."""

from __future__ import annotations

import numpy as np
import pytest

from hecate.planner.load import LoadWindow


def test_it_predicts_the_mean_of_the_last_steps_alone() -> None:
    window = LoadWindow(1, 2, window=3)
    assert not window.has_history
    assert window.predict().tolist() == [[0.0, 0.0]]
    for first in (100, 1, 2, 6):
        window.push(np.array([[first, 10]]))
    assert window.has_history
    assert window.predict().tolist() == [[3.0, 10.0]]


def test_what_is_restored_predicts_alike_and_goes_on_alike() -> None:
    one, other = LoadWindow(2, 3), LoadWindow(2, 3)
    rng = np.random.default_rng(1)
    for _ in range(7):
        one.push(rng.integers(0, 99, (2, 3)))
    other.restore(one.state())
    assert np.array_equal(one.predict(), other.predict())
    step = rng.integers(0, 99, (2, 3))
    one.push(step)
    other.push(step)
    assert np.array_equal(one.state(), other.state())


def test_counts_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="expected \\[layers, experts\\]"):
        LoadWindow(2, 3).push(np.zeros((3, 2), dtype=np.int64))
