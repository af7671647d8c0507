"""Best fit: by hand, and against a reference that looks at every row."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hecate.data.best_fit import best_fit


def test_the_fullest_row_with_room_is_taken():
    # 7 and 6 open rows with 3 and 4 free; 4 fits the second, 3 the first, both are then full.
    assert best_fit(np.array([7, 6, 4, 3, 1]), 10).tolist() == [0, 1, 1, 0, 2]
    assert best_fit(np.array([5, 5, 5]), 5).tolist() == [0, 1, 2]
    assert best_fit(np.array([], dtype=np.int64), 5).tolist() == []


def row_by_row(lengths, room):
    """How much each row holds, in the end, by looking at every row for each length."""
    rows = []
    for length in lengths:
        fitting = [row for row in rows if sum(row) + length <= room]
        if not fitting:
            rows.append(fitting := [])
            fitting.append(length)
            continue
        max(fitting, key=sum).append(length)
    return sorted(sum(row) for row in rows)


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(20, 30))
def test_rows_are_filled_as_the_reference_fills_them(lengths, room):
    lengths = sorted(lengths, reverse=True)
    rows = best_fit(np.array(lengths, dtype=np.int64), room)
    held = np.bincount(rows, weights=lengths) if lengths else np.array([])
    assert sorted(held.astype(int).tolist()) == row_by_row(lengths, room)
    assert set(rows.tolist()) == set(range(len(held)))
    assert held.max(initial=0) <= room


def test_few_tokens_of_the_rows_are_padding():
    lengths = np.sort(np.random.default_rng(0).integers(40, 400, 2000))[::-1]
    rows = best_fit(lengths, 512)
    assert lengths.sum() / (512 * (rows.max() + 1)) > 0.95
