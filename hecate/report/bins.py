"""Neighbours in a long series put together, so that a picture has no more points than it can show.

Pure. What is put together is kept as a mean beside its least and its greatest, and is said to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hecate.report.records import Floats, Ints


@dataclass(frozen=True)
class Bins:
    """``starts[i]`` is the first item of bin i, of ``count`` items in a row."""

    starts: Ints
    count: int

    @classmethod
    def of(cls, count: int, most: int) -> Bins:
        """``count`` items in at most ``most`` bins, as many in each to within one."""
        num_bins = min(count, most)
        places = np.arange(num_bins, dtype=np.int64)
        return cls(places * count // max(1, num_bins), count)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def most_in_one(self) -> int:
        """How many items the largest bin has."""
        ends = np.append(self.starts[1:], self.count)
        return int((ends - self.starts).max()) if len(self) else 0

    def means(self, values: Floats) -> Floats:
        """``[count, ...]`` -> ``[bins, ...]``; what is not finite is left out of its mean."""
        if not len(self):
            return values
        known = np.isfinite(values)
        sums = np.add.reduceat(np.where(known, values, 0.0), self.starts, axis=0)
        counts = np.add.reduceat(known.astype(np.float64), self.starts, axis=0)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def sums(self, values: Floats) -> Floats:
        """``[count]`` -> ``[bins]``; what is not finite counts as nothing."""
        if not len(self):
            return values
        sums: Floats = np.add.reduceat(np.where(np.isfinite(values), values, 0.0), self.starts)
        return sums

    def least(self, values: Floats) -> Floats:
        """NaN where none is finite."""
        return self._extreme(np.where(np.isfinite(values), values, np.nan), np.fmin)

    def greatest(self, values: Floats) -> Floats:
        """NaN where none is finite."""
        return self._extreme(np.where(np.isfinite(values), values, np.nan), np.fmax)

    def edges(self, steps: Sequence[int] | Ints, before: int) -> list[int]:
        """Steps between which bins lie: bin i is of the steps after ``edges[i]``, up to the next.

        ``steps[j]`` is the last step of item j, ``before`` what had been done before the first.
        """
        last = (np.append(self.starts[1:], self.count) - 1) if len(self) else self.starts
        return [before, *(int(steps[place]) for place in last)]

    def picked(self, bin_number: int, most: int) -> list[int]:
        """At most ``most`` items of a bin, evenly spread over it."""
        begin = int(self.starts[bin_number])
        last = bin_number + 1 == len(self)
        end = self.count if last else int(self.starts[bin_number + 1])
        num = min(most, end - begin)
        return [begin + (2 * place + 1) * (end - begin) // (2 * num) for place in range(num)]

    def _extreme(self, values: Floats, ufunc: np.ufunc) -> Floats:
        if not len(self):
            return values
        found: Floats = ufunc.reduceat(values, self.starts, axis=0)
        return found
