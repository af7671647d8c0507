"""The Gittins index of work whose size is known only as samples.

Of an application that has had ``a`` of its unknown total ``X`` (2506.14851, section 4; Gittins,
1979; Scully and Harchol-Balter's "SOAP", 1712.00790, for its use in queues)::

    G(a) = inf over d > 0 of  E[min(X - a, d) | X > a] / P(X - a <= d | X > a)

the least price, in seconds of work for one ending, at which it is worth going on with; whoever has
the smallest goes first. With ``F(t) = P(X <= t)`` and ``H(t) = E[min(X, t)]`` it is the least slope
from the point ``(F(a), H(a))`` to a later one, since both conditions share the factor ``1 - F(a)``:
which is how all ages are done at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from serving.scheduling.applications.prospects import Samples

BUCKETS = 16
_LEAST_IN_BUCKET = 6  # samples: fewer say little of how many end in it


def index(samples: Samples, age_s: float) -> float:
    """Exact, of the samples' own distribution: an infimum over every sample. ``samples``: sorted,
    ``[n]``. 0 where all are behind: what has outlived them all might end at once."""
    first = int(np.searchsorted(samples, age_s, side="right"))
    left = samples[first:] - age_s
    if not left.size:
        return 0.0
    ended = np.arange(1, left.size + 1)
    spent = np.cumsum(left) + (left.size - ended) * left
    return float(np.min(spent / ended))


def optimistic_index(samples: Samples, age_s: float) -> float:
    """What the paper's artifact computes: of ten equal steps to the largest sample, the least of
    ``E[X - a | X - a <= d] / P(X - a <= d)``. Work that goes on beyond ``d`` costs nothing in it,
    so that heavy tails look better than they are; kept to reproduce its figures."""
    first = int(np.searchsorted(samples, age_s, side="right"))
    left = samples[first:] - age_s
    if not left.size:
        return 0.0
    steps = left[-1] / 10 * np.arange(1, 11)
    ended = np.searchsorted(left, steps * (1 + 1e-12), side="right")
    some = ended > 0
    spent = np.cumsum(left)[ended[some] - 1]
    return float(np.min(spent / ended[some] * (left.size / ended[some])))


@dataclass(frozen=True, eq=False)
class RankTable:
    """An index at every age, by straight lines: from ``left[i]`` at the age ``edges[i]`` to
    ``right[i]`` just below ``edges[i + 1]``; beyond the last edge there are no samples. All
    ``[B]``, the last of ``left`` and ``right`` 0."""

    edges: Samples
    left: Samples
    right: Samples

    def at(self, age_s: float) -> float:
        bucket = int(np.searchsorted(self.edges, age_s, side="right")) - 1
        bucket = max(0, bucket)
        if bucket == self.edges.size - 1:
            return 0.0
        width = self.edges[bucket + 1] - self.edges[bucket]
        share = (max(age_s, 0.0) - self.edges[bucket]) / width
        return float((1 - share) * self.left[bucket] + share * self.right[bucket])


def bucketed(samples: Samples, buckets: int = BUCKETS) -> RankTable:
    """The textbook index, of samples that stand for more than themselves.

    Just before each sample the exact index is next to nothing, as if the work had to end there.
    Here what ends within a bucket ends anywhere in it, but for values that make up a whole bucket
    by themselves. Buckets hold equal shares of the samples, smaller ones towards the tail, and
    none of them spans a gap that is most of it. Where there are no more than ``buckets`` different
    values the table is exact at each of them; between two, where the best time to stop changes, the
    straight line is a little below.
    """
    if not samples.size:
        return RankTable(np.zeros(1), np.zeros(1), np.zeros(1))
    times, shares = _points(samples, buckets)
    below = np.searchsorted(samples, times, side="right")
    sums = np.concatenate([[0.0], np.cumsum(samples)])
    spent = (sums[below] + (samples.size - below) * times) / samples.size
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = (spent[None, :] - spent[:, None]) / (shares[None, :] - shares[:, None])
        slopes[~(shares[None, :] > shares[:, None])] = np.inf  # nothing ends by then
        least = np.min(slopes, axis=1)
        widths = np.diff(times)
        last_price = (1 - shares[1:]) * widths / np.diff(shares)
    last_price[~(np.diff(shares) > 0)] = np.inf
    kept = np.flatnonzero(widths > 0)
    left = least[kept]
    right = np.minimum(last_price[kept], least[kept + 1])
    edges = np.append(times[kept], times[-1])
    return RankTable(edges, np.append(left, 0.0), np.append(right, 0.0))


def optimistic(samples: Samples, buckets: int = BUCKETS) -> RankTable:
    """``optimistic_index`` at quantiles of the samples, and straight lines between them."""
    if not samples.size:
        return RankTable(np.zeros(1), np.zeros(1), np.zeros(1))
    inner = np.quantile(samples, np.arange(buckets) / buckets)
    edges = np.unique(np.concatenate([[0.0], inner, samples[-1:]]))
    left = np.array([optimistic_index(samples, edge) for edge in edges])
    right = np.array([optimistic_index(samples, edge * (1 - 1e-9)) for edge in edges[1:]])
    return RankTable(edges, left, np.append(right, 0.0))


FORMS: Mapping[str, Callable[[Samples, int], RankTable]] = MappingProxyType(
    {"textbook": bucketed, "artifact": optimistic}
)


def _points(samples: Samples, buckets: int) -> tuple[Samples, Samples]:
    """Where buckets meet: times, and the share of samples that is behind. A time comes twice where
    so many samples are equal to it that they are a bucket of their own."""
    n = samples.size
    values, counts = np.unique(samples, return_counts=True)
    behind = np.concatenate([[0], np.cumsum(counts)])  # value i is behind at i + 1
    if values.size <= buckets:
        begins = ends = np.arange(values.size)
    else:
        each = max(_LEAST_IN_BUCKET, -(-n // buckets))
        tails = each >> np.arange(1, 32)
        cuts = np.concatenate([np.arange(each, n, each), n - tails[tails >= _LEAST_IN_BUCKET], [n]])
        alone = np.flatnonzero(counts >= each)
        ends = np.union1d(np.searchsorted(behind[1:], cuts), alone)
        gaps = _gaps(values, ends)
        begins = np.union1d(gaps + 1, alone)
        ends = np.union1d(np.setdiff1d(ends, gaps + 1), gaps[gaps >= 0])
        ends = np.union1d(ends, np.append(alone, values.size - 1))
    times = np.concatenate([[0.0], values[begins], values[ends]])
    passed = np.concatenate([[0], behind[begins], behind[ends + 1]])
    order = np.lexsort((passed, times))
    return times[order], passed[order] / n


def _gaps(values: Samples, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """The values, by number, behind which nothing ends for most of their bucket; -1 for the start,
    from which it is always so to the first value."""
    found = [-1]
    for low, high in zip(ends[:-1], ends[1:], strict=True):
        steps = np.diff(values[low : high + 1])
        widest = int(np.argmax(steps))
        if steps[widest] > 0.5 * (values[high] - values[low]):
            found.append(int(low) + widest)
    return np.array(found)
