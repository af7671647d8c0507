"""Arithmetic on sets of time intervals: union, intersection, length. Pure.

An interval is ``(start, end)`` with ``start <= end``, in any unit; a *set* is a list of them, in
ascending order, that neither overlap nor touch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Interval = tuple[float, float]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """What any of ``intervals`` covers, as a set; empty ones cover nothing."""
    merged: list[Interval] = []
    for start, end in sorted(each for each in intervals if each[1] > each[0]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def intersection(a: Sequence[Interval], b: Sequence[Interval]) -> list[Interval]:
    """What two sets both cover, as a set."""
    common: list[Interval] = []
    i = j = 0
    while i < len(a) and j < len(b):
        start, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if start < end:
            common.append((start, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return common


def length(covered: Iterable[Interval]) -> float:
    """How much a set covers."""
    return sum(end - start for start, end in covered)
