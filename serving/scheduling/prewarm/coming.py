"""Which units of an instance come next, how probably, and when.

Hermes (2506.14851) begins to warm a backend once the branch's probability times the chance that
what runs now ends within the time to warm it reaches a threshold. That chance is taken here given
that it has not ended yet: then the threshold is what a second of delay costs against a second of
idling, and to begin at once is worth more than to begin a moment later exactly when it is passed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from serving.scheduling.prewarm.shapes import Seconds, Shape

_POINTS = 16  # of each distribution, where two are added


@dataclass(frozen=True)
class Coming:
    """``unit`` is reached with ``probability``; ``seconds``, sorted, from now, one sample each."""

    unit: str
    probability: float
    seconds: Seconds

    def within(self, seconds: float) -> float:
        """The probability that it has begun so many seconds from now."""
        if not len(self.seconds):
            return 0.0
        ended = np.searchsorted(self.seconds, seconds, side="right")
        return float(self.probability * ended / len(self.seconds))


def coming(
    shape: Shape, unit: str, elapsed_s: float, needing: Collection[str], *, depth: int = 2
) -> tuple[Coming, ...]:
    """Those of ``needing`` that may come after ``unit``, open for ``elapsed_s``, within ``depth``
    units; through a unit that needs it itself nothing is looked for, since that one comes first."""
    seconds = shape.seconds.get(unit)
    if seconds is None:
        return ()
    left = seconds[np.searchsorted(seconds, elapsed_s, side="right") :] - elapsed_s
    found: list[Coming] = []
    for name, probability in shape.after.get(unit, {}).items():
        if name in needing:
            found.append(Coming(name, probability, left))
        elif depth > 1:
            through = shape.seconds.get(name)
            if through is None:
                continue
            for second, then in shape.after.get(name, {}).items():
                if second in needing:
                    found.append(Coming(second, probability * then, _sums(left, through)))
    return tuple(found)


def overdue(shape: Shape, unit: str, elapsed_s: float) -> float:
    """The share of the runs of ``unit`` that had ended by then; 0 where none is known."""
    seconds = shape.seconds.get(unit)
    if seconds is None or not len(seconds):
        return 0.0
    return float(np.searchsorted(seconds, elapsed_s, side="right") / len(seconds))


def _sums(one: Seconds, other: Seconds) -> Seconds:
    """Of a sum of independent draws, by points of equal weight of either."""
    if not len(one) or not len(other):
        return np.zeros(0)
    return np.sort(np.add.outer(_points(one), _points(other)).ravel())


def _points(samples: Seconds) -> Seconds:
    if len(samples) <= _POINTS:
        return samples
    middle = (np.arange(_POINTS) + 0.5) / _POINTS * len(samples)
    return samples[middle.astype(np.int64)]
