"""The index against closed forms, and against optimal stopping tried out in full."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving.scheduling.applications.gittins import (
    bucketed,
    index,
    optimistic,
    optimistic_index,
)

Samples = NDArray[np.float64]
SMALL = st.lists(st.integers(1, 30), min_size=1, max_size=12).map(sorted)


def quantiles_of_exponential(mean: float, size: int) -> Samples:
    return -mean * np.log1p(-(np.arange(size) + 0.5) / size)


def quantiles_of_pareto(shape: float, size: int) -> Samples:
    return (1 - (np.arange(size) + 0.5) / size) ** (-1 / shape)


def brute_force(samples: list[int], age: int) -> Fraction:
    """Over every stopping time: work on in steps of one until some of the steps to come."""
    alive = [sample for sample in samples if sample > age]
    prices = []
    for steps in range(1, max(alive) - age + 1):
        spent = sum(min(sample - age, steps) for sample in alive)
        ended = sum(sample - age <= steps for sample in alive)
        if ended:
            prices.append(Fraction(spent, ended))
    return min(prices)


def value_of_stopping(samples: list[int], age: int, reward: Fraction) -> Fraction:
    """Of the best way to work on or stop at each age, where ending earns ``reward`` and a step of
    work costs 1: by backward induction, without the formula of the index."""
    value = Fraction(0)
    for at in range(max(samples) - 1, age - 1, -1):
        alive = sum(sample > at for sample in samples)
        ends = Fraction(sum(sample == at + 1 for sample in samples), alive)
        value = max(Fraction(0), ends * reward + (1 - ends) * value - 1)
    return value


@pytest.mark.parametrize("age", [0.0, 2.0, 4.5])
def test_what_is_certain_has_what_is_left_of_it(age: float) -> None:
    samples = np.full(100, 5.0)
    assert index(samples, age) == pytest.approx(5 - age)
    assert bucketed(samples).at(age) == pytest.approx(5 - age)
    assert optimistic_index(samples, age) == pytest.approx(5 - age)


@pytest.mark.parametrize("age", [0.0, 3.0, 10.0, 20.0, 30.0])
def test_what_has_no_memory_has_its_mean_at_any_age(age: float) -> None:
    mean = 10.0
    samples = quantiles_of_exponential(mean, 4000)
    assert bucketed(samples, 20).at(age) == pytest.approx(mean, rel=0.1)


def test_the_shorter_of_two_modes_counts_until_it_is_over() -> None:
    samples = np.repeat([1.0, 10.0], 50)
    for find in (lambda age: index(samples, age), bucketed(samples).at):
        assert find(0.0) == pytest.approx(2.0)  # 1 of work, which is enough in half of all cases
        assert find(0.5) == pytest.approx(1.0)
        assert find(1.0) == pytest.approx(9.0)
        assert find(9.0) == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [1.2, 2.0])
def test_with_a_heavy_tail_the_index_grows_with_age(shape: float) -> None:
    """The hazard of Pareto's tail at the age ``a`` is ``shape / a``, the index its inverse."""
    samples = quantiles_of_pareto(shape, 20000)
    table = bucketed(samples)
    ages = np.array([1.5, 2.0, 3.0, 4.0])
    found = np.array([table.at(age) for age in ages])
    assert (np.diff(found) > 0).all()
    np.testing.assert_allclose(found, ages / shape, rtol=0.35)


@given(SMALL, st.data())
def test_the_index_is_the_best_of_all_stopping_times(
    samples: list[int], data: st.DataObject
) -> None:
    age = data.draw(st.integers(0, samples[-1] - 1))
    assert index(np.array(samples, float), age) == pytest.approx(float(brute_force(samples, age)))


@given(SMALL, st.data())
def test_the_index_is_the_reward_for_which_work_is_just_worth_it(
    samples: list[int], data: st.DataObject
) -> None:
    age = data.draw(st.integers(0, samples[-1] - 1))
    reward = brute_force(samples, age)
    assert value_of_stopping(samples, age, reward) == 0
    assert value_of_stopping(samples, age, reward * Fraction(101, 100)) > 0
    assert float(reward) == pytest.approx(index(np.array(samples, float), age))


@given(SMALL)
def test_of_few_values_the_table_is_exact(samples: list[int]) -> None:
    table = bucketed(np.array(samples, float))
    for age in range(samples[-1]):
        exact = float(brute_force(samples, age))
        if age == 0 or age in samples:
            assert table.at(age) == pytest.approx(exact)
        else:
            assert 0 < table.at(age) <= exact * (1 + 1e-9)


@given(
    st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=400),
    st.floats(0, 1),
    st.sampled_from([bucketed, optimistic]),
)
def test_a_table_has_finite_indices_at_every_age(
    samples: list[float], part: float, form: object
) -> None:
    table = form(np.array(sorted(samples)))  # type: ignore[operator]
    assert (np.diff(table.edges) > 0).all() and table.edges[0] == 0
    assert np.isfinite(table.left).all() and np.isfinite(table.right).all()
    assert (table.left >= 0).all() and (table.right >= 0).all()
    mean_left = np.mean(samples)
    assert table.at(0.0) <= mean_left * (1 + 1e-6)
    assert 0 <= table.at(part * max(samples)) <= max(samples) * len(samples)
    assert table.at(max(samples)) == 0.0


def test_many_samples_are_not_taken_for_certain_ends() -> None:
    """Just before a sample the exact index is next to nothing; the table's is that of the whole."""
    rng = np.random.default_rng(0)
    samples = np.sort(rng.exponential(10.0, 1000))
    before = samples[500] - 1e-6
    assert index(samples, before) < 1e-2
    assert bucketed(samples).at(before) == pytest.approx(10.0, rel=0.25)


def test_no_bucket_spans_the_gap_between_two_modes() -> None:
    rng = np.random.default_rng(1)
    samples = np.sort(np.concatenate([rng.normal(1, 0.1, 500), rng.normal(10, 1, 500)]))
    table = bucketed(samples)
    for age in (0.0, 0.5, 1.5, 5.0):
        assert table.at(age) == pytest.approx(index(samples, age), rel=0.05)


def test_the_artifacts_form_is_the_more_hopeful_of_heavy_tails() -> None:
    rng = np.random.default_rng(2)
    samples = np.sort(rng.geometric(0.4, 1000) * rng.lognormal(3.0, 0.5, 1000))
    assert optimistic_index(samples, 0.0) < 0.8 * index(samples, 0.0)
    table = optimistic(samples)
    for age in table.edges[:-1]:
        assert table.at(age) == pytest.approx(optimistic_index(samples, age))


def test_scheduling_by_it_is_the_best_there_is() -> None:
    """Two jobs at a time on one server, every order of preemption tried: the mean time to their
    ends is least if the smaller index goes first in each step."""
    first, second = [1, 6, 6], [3, 3, 4]
    best = _least_mean(first, second, 0, 0, by_index=False)
    assert _least_mean(first, second, 0, 0, by_index=True) == best


def _least_mean(
    one: list[int], other: list[int], age: int, other_age: int, *, by_index: bool
) -> Fraction:
    """Expected sum of the seconds in which each is not done."""
    jobs = [(one, age), (other, other_age)]
    left = [job for job in jobs if any(sample > job[1] for sample in job[0])]
    if len(left) < 2:
        return sum((_mean_left(*job) for job in left), Fraction(0))
    costs = []
    for which, (samples, at) in enumerate(jobs):
        rest = jobs[1 - which]
        alive = [sample for sample in samples if sample > at]
        ends = Fraction(sum(sample == at + 1 for sample in alive), len(alive))
        goes_on = Fraction(0)
        if ends < 1:
            pair = ((samples, at + 1), rest) if which == 0 else (rest, (samples, at + 1))
            goes_on = _least_mean(pair[0][0], pair[1][0], pair[0][1], pair[1][1], by_index=by_index)
        costs.append(2 + ends * _mean_left(*rest) + (1 - ends) * goes_on)
    if not by_index:
        return min(costs)
    prices = [brute_force(samples, at) for samples, at in jobs]
    return costs[0] if prices[0] <= prices[1] else costs[1]


def _mean_left(samples: list[int], age: int) -> Fraction:
    alive = [sample - age for sample in samples if sample > age]
    return Fraction(sum(alive), len(alive))


def test_every_pair_of_small_jobs_agrees() -> None:
    shapes = [[2, 2], [1, 4], [1, 1, 5], [3]]
    for one, other in itertools.product(shapes, shapes):
        best = _least_mean(one, other, 0, 0, by_index=False)
        assert _least_mean(one, other, 0, 0, by_index=True) == best
