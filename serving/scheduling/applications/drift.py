"""Whether a class has changed what it does."""

from __future__ import annotations

import math

import numpy as np

from serving.scheduling.applications.columns import Floats

_SPLITS = (20, 40, 80)
_FINER = tuple(range(10, 101, 5))


def changed(values: Floats, false_alarms: float = 1e-4) -> int:
    """How many of the newest instances are unlike those before them; 0 where none are.

    ``values``: ``[n, s]``, several figures of each instance, the oldest first. The two-sample test
    of Kolmogorov and Smirnov, of each figure at a few places where the change may have come, at a
    level that all of them share; then the place where the difference is plainest.
    """
    size, figures = values.shape
    splits = [split for split in _SPLITS if split <= size // 2]
    if not splits or not figures:
        return 0
    level = false_alarms / (len(splits) * figures)
    least = math.sqrt(-math.log(level / 2) / 2)
    scores = [[_apart(values[:, each], split) for split in splits] for each in range(figures)]
    plainest = max(range(figures), key=lambda each: max(scores[each]))
    if max(scores[plainest]) <= least:
        return 0
    finer = [split for split in _FINER if split <= size // 2]
    return max(finer, key=lambda split: _apart(values[:, plainest], split))


def _apart(values: Floats, newest: int) -> float:
    """The largest distance of the two distributions, in units of what chance alone makes of it."""
    old, new = np.sort(values[:-newest]), np.sort(values[-newest:])
    every = np.concatenate([old, new])
    of_old = np.searchsorted(old, every, side="right") / old.size
    of_new = np.searchsorted(new, every, side="right") / new.size
    farthest = float(np.max(np.abs(of_old - of_new)))
    return farthest * math.sqrt(old.size * new.size / values.size)
