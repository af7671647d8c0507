"""The Gittins indices of all instances under way, at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from serving.scheduling.applications.gittins import BUCKETS, RankTable, bucketed
from serving.scheduling.applications.live import Live
from serving.scheduling.applications.prospects import Prospect, Prospects, Samples

_NEVER = -1
_TABLES_KEPT = 1024  # of samples that several instances share


class Ranks:
    """Of each instance the index at what it has had since its prospect was given, from a table.

    Where there are no samples, or it has outlived them, it ranks by all the service that it has had
    (LAS, Autellix 2502.13965), which is the index of a tail of Pareto's with the exponent 1 and so
    is comparable with the others; by ``least_s`` as long as that is more.
    """

    def __init__(
        self,
        prospects: Prospects,
        table: Callable[[Samples, int], RankTable] = bucketed,
        buckets: int = BUCKETS,
    ) -> None:
        self._prospects = prospects
        self._table = table
        self._buckets = buckets
        self._tables: OrderedDict[int, tuple[Samples, RankTable]] = OrderedDict()
        self._rows: dict[Live, int] = {}
        self._seen: list[int] = []  # of each row, the ``shown`` that it is of
        self._free: list[int] = []
        self._edges = np.full((0, 2), np.inf)
        self._left = np.zeros((0, 2))
        self._right = np.zeros((0, 2))
        self._base_s = np.zeros(0)
        self._end_s = np.zeros(0)
        self._least_s = np.zeros(0)
        self._ranks: dict[Live, float] = {}

    def tick(self, lives: Collection[Live]) -> NDArray[np.float64]:
        """The indices of ``lives``, in their order: ``[L]``, seconds."""
        if not lives:
            self._ranks = {}
            self._forget(lives)
            return np.zeros(0)
        rows = self._rows_of(lives)
        attained_s = np.array([live.attained_s for live in lives])
        ages_s = np.maximum(attained_s - self._base_s[rows], 0.0)
        edges = self._edges[rows]
        bucket = np.count_nonzero(edges <= ages_s[:, None], axis=1) - 1
        known = ages_s < self._end_s[rows]
        bucket[~known] = 0
        every = np.arange(rows.size)
        begin, end = edges[every, bucket], edges[every, bucket + 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (ages_s - begin) / (end - begin)
            left, right = self._left[rows, bucket], self._right[rows, bucket]
            within = left + share * (right - left)
        found: NDArray[np.float64] = np.where(
            known, within, np.maximum(attained_s, self._least_s[rows])
        )
        self._ranks = dict(zip(lives, found.tolist(), strict=True))
        if len(self._rows) > len(lives):
            self._forget(lives)
        return found

    def of(self, live: Live) -> float:
        """As of the last tick; of an instance that was not in it, from its own table."""
        rank = self._ranks.get(live)
        if rank is None:
            prospect = self._prospects.prospect(live)
            age_s = max(0.0, live.attained_s - prospect.attained_s)
            if prospect.device_s.size and age_s < prospect.device_s[-1]:
                return self._table_of(prospect.device_s).at(age_s)
            return max(live.attained_s, prospect.least_s)
        return rank

    def _rows_of(self, lives: Collection[Live]) -> NDArray[np.int64]:
        """A loop over all of them, and so in as few words as it may be."""
        known, seen, rows = self._rows, self._seen, []
        for live in lives:
            row = known.get(live, -1)
            if row < 0:
                row = known[live] = self._take()
            if seen[row] != live.shown:
                seen[row] = live.shown
                self._fill(row, self._prospects.prospect(live))
            rows.append(row)
        return np.array(rows)

    def _fill(self, row: int, prospect: Prospect) -> None:
        self._base_s[row] = prospect.attained_s
        self._least_s[row] = prospect.least_s
        if not prospect.device_s.size:
            self._end_s[row] = 0.0
            self._edges[row] = (0.0, *[np.inf] * (self._edges.shape[1] - 1))
            return
        table = self._table_of(prospect.device_s)
        if table.edges.size > self._edges.shape[1]:
            self._resize(len(self._seen), table.edges.size)
        self._end_s[row] = table.edges[-1]
        for kept, given, rest in (
            (self._edges, table.edges, np.inf),
            (self._left, table.left, 0.0),
            (self._right, table.right, 0.0),
        ):
            kept[row, : given.size] = given
            kept[row, given.size :] = rest

    def _table_of(self, samples: Samples) -> RankTable:
        found = self._tables.get(id(samples))
        if found is None:
            found = self._tables[id(samples)] = samples, self._table(samples, self._buckets)
            if len(self._tables) > _TABLES_KEPT:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end(id(samples))
        return found[1]

    def _take(self) -> int:
        if not self._free:
            had = len(self._seen)
            more = max(64, had)
            self._seen += [_NEVER] * more
            self._free = list(range(had + more - 1, had - 1, -1))
            self._resize(had + more, self._edges.shape[1])
        return self._free.pop()

    def _resize(self, rows: int, edges: int) -> None:
        def grown(kept: NDArray[np.float64], rest: float) -> NDArray[np.float64]:
            larger = np.full((rows, edges) if kept.ndim == 2 else rows, rest)
            larger[tuple(slice(size) for size in kept.shape)] = kept
            return larger

        self._edges = grown(self._edges, np.inf)
        self._left, self._right = grown(self._left, 0.0), grown(self._right, 0.0)
        self._base_s, self._end_s = grown(self._base_s, 0.0), grown(self._end_s, 0.0)
        self._least_s = grown(self._least_s, 0.0)

    def _forget(self, lives: Collection[Live]) -> None:
        here = set(lives)
        for live in [live for live in self._rows if live not in here]:
            row = self._rows.pop(live)
            self._seen[row] = _NEVER
            self._free.append(row)
