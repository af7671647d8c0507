"""Change of a class is found soon, and chance is not taken for it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.scheduling.applications.drift import changed


def figures(rng: np.random.Generator, size: int, scale: float = 1.0) -> NDArray[np.float64]:
    return np.stack(
        [scale * rng.lognormal(0, 0.5, size), rng.geometric(0.5, size).astype(float)], axis=1
    )


def test_the_same_all_along_is_no_change() -> None:
    rng = np.random.default_rng(0)
    found = [changed(figures(rng, 400)) for _ in range(300)]
    assert np.count_nonzero(found) <= 1


@pytest.mark.parametrize("newest", [20, 40, 80])
@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_another_scale_is_found_and_where_it_began(newest: int, scale: float) -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([figures(rng, 300), figures(rng, newest, scale)])
    assert abs(changed(values) - newest) <= 10


def test_other_units_are_found() -> None:
    rng = np.random.default_rng(2)
    values = figures(rng, 300)
    values[-30:, 1] += 3
    assert 25 <= changed(values) <= 35


@pytest.mark.parametrize("size", [0, 1, 39])
def test_of_a_few_nothing_is_said(size: int) -> None:
    values = np.zeros((size, 1))
    values[size // 2 :] = 1.0
    assert changed(values) == 0
