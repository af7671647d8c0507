"""Intervals worked out by hand."""

from hypothesis import given
from hypothesis import strategies as st

from hecate.train.profile.intervals import intersection, length, union

INTERVALS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda pair: (min(pair), max(pair)))
)


def test_what_overlaps_or_touches_becomes_one() -> None:
    assert union([(5, 7), (0, 2), (1, 3), (3, 4), (9, 9)]) == [(0, 4), (5, 7)]
    assert union([(0, 10), (2, 3)]) == [(0, 10)]
    assert union([]) == []


def test_what_two_sets_share() -> None:
    assert intersection([(0, 4), (6, 10)], [(3, 7), (8, 9)]) == [(3, 4), (6, 7), (8, 9)]
    assert intersection([(0, 4)], [(4, 5)]) == []
    assert length([(0, 4), (6, 7)]) == 5


@given(INTERVALS, INTERVALS)
def test_sets_are_those_of_their_points(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    def points(intervals: list[tuple[float, float]]) -> set[int]:
        return {point for start, end in intervals for point in range(int(start), int(end))}

    assert points(union(a)) == points(list(a)) and length(union(a)) == len(points(list(a)))
    assert points(intersection(union(a), union(b))) == points(list(a)) & points(list(b))
