"""What is put together for a picture, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hecate.report.bins import Bins


def test_few_items_stay_as_they_are():
    bins = Bins.of(3, 10)
    values = np.array([1.0, 2.0, 4.0])
    assert len(bins) == 3 and bins.most_in_one == 1
    for found in (bins.means(values), bins.least(values), bins.greatest(values)):
        assert found.tolist() == [1, 2, 4]


def test_many_are_means_beside_their_extremes():
    bins = Bins.of(5, 2)
    values = np.array([1.0, 3.0, 5.0, 6.0, 10.0])
    assert bins.starts.tolist() == [0, 2] and bins.most_in_one == 3
    assert bins.means(values).tolist() == [2, 7]
    assert bins.least(values).tolist() == [1, 5]
    assert bins.greatest(values).tolist() == [3, 10]
    assert bins.sums(values).tolist() == [4, 21]
    assert bins.edges([10, 20, 30, 40, 50], 5) == [5, 20, 50]


def test_what_is_not_finite_is_left_out():
    bins = Bins.of(4, 2)
    values = np.array([np.nan, 4.0, np.inf, np.nan])
    assert bins.means(values).tolist()[0] == 4 and np.isnan(bins.means(values)[1])
    assert bins.least(values)[0] == bins.greatest(values)[0] == 4
    assert np.isnan(bins.greatest(values)[1])
    assert bins.sums(values).tolist() == [4, 0]


def test_tables_are_put_together_by_their_first_dim():
    table = np.arange(8.0).reshape(4, 2)
    assert Bins.of(4, 2).means(table).tolist() == [[1, 2], [5, 6]]


def test_nothing_has_no_bins():
    bins = Bins.of(0, 10)
    assert len(bins) == bins.most_in_one == 0 and bins.edges([], 0) == [0]
    assert bins.means(np.zeros(0)).shape == (0,)


@pytest.mark.parametrize(("most", "picked"), [(1, [4]), (2, [2, 6]), (8, list(range(8)))])
def test_items_of_a_bin_are_picked_evenly(most, picked):
    assert Bins.of(8, 1).picked(0, most) == picked


@given(st.integers(1, 500), st.integers(1, 60), st.integers(1, 9))
def test_every_item_is_in_one_bin(count, most, picks):
    bins = Bins.of(count, most)
    sizes = np.diff([*bins.starts.tolist(), count])
    assert len(bins) == min(count, most) and sizes.max() - sizes.min() <= 1
    assert sizes.max() == bins.most_in_one
    for number in range(len(bins)):
        picked = bins.picked(number, picks)
        assert len(picked) == min(picks, sizes[number]) == len(set(picked))
        begin = int(bins.starts[number])
        assert all(begin <= place < begin + sizes[number] for place in picked)
