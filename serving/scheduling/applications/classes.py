"""The classes that are remembered: no more than there is room for, whatever names come."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from serving.scheduling.applications.columns import Packed
from serving.scheduling.applications.config import HistoryConfig
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.gittins import bucketed
from serving.scheduling.applications.graph import PDGraph
from serving.scheduling.applications.live import ClassKey
from serving.scheduling.applications.traces import Trace

_HALVED_AFTER = 10_000.0  # instances of any class: then a use counts half
_SHARE_OF_ONE = 4  # of the memory for traces, the most that one class takes: a quarter
_POOLED = 512
_POOL_RENEWED = 32


@dataclass(frozen=True, eq=False)
class ClassHistory:
    """What is kept of a class: the names of its units, the traces with these by number, and how
    useful it has been (see ``Classes``), relative to one use now, as a power of two."""

    key: ClassKey
    uses: float
    units: tuple[str, ...]
    traces: tuple[Packed, ...]


class Classes:
    """Graphs by class, of those that are used most.

    A use counts half once so many others followed it. Where there are too many classes, or their
    traces take too much memory, the tenant that has most loses the one that is used least: a
    tenant's endless names drive out each other, none of another tenant's and none of its own that
    come again before there was no more room.
    """

    def __init__(self, config: HistoryConfig, rates: Callable[[], Rates]) -> None:
        self._config = config
        self._rates = rates
        self._graphs: dict[ClassKey, PDGraph] = {}
        self._size_bytes: dict[str, int] = {}  # by tenant
        self._count: dict[str, int] = {}
        self._worth: dict[ClassKey, float] = {}
        self._by_worth: dict[str, list[tuple[float, ClassKey]]] = {}
        self._uses = 0
        self._pools: dict[str, _Pool] = {}
        self._pool = _Pool(self._config.enough_traces)
        self.evicted = 0

    @property
    def graphs(self) -> Mapping[ClassKey, PDGraph]:
        return MappingProxyType(self._graphs)

    @property
    def size_bytes(self) -> int:
        return sum(self._size_bytes.values())

    def add(self, key: ClassKey, trace: Trace) -> None:
        """An instance has ended."""
        graph = self._graphs.get(key) or self._new(key)
        self._use(key)
        had_bytes = graph.size_bytes
        graph.add(trace)
        self._size_bytes[key.tenant] += graph.size_bytes - had_bytes
        rates = self._rates()
        work_s = sum(rates.work_s(call) for run in trace.runs for call in run.calls)
        self._pool.add(work_s)
        self._pools[key.tenant].add(work_s)
        self._make_room(key)

    def least_s(self, tenant: str) -> float:
        """The index of work of this tenant's of which nothing else is known: at first that of any
        work of its own, or of all tenants' where it has done little."""
        pool = self._pools.get(tenant)
        return pool.index_s if pool is not None and pool.known else self._pool.index_s

    def history(self) -> tuple[ClassHistory, ...]:
        now = self._uses / _HALVED_AFTER
        return tuple(
            ClassHistory(key, self._worth[key] - now, graph.units, graph.packed)
            for key, graph in self._graphs.items()
        )

    def restore(self, history: tuple[ClassHistory, ...]) -> None:
        """Takes over what another had, of classes that are new here."""
        for had in history:
            if had.key in self._graphs:
                continue
            graph = self._new(had.key)
            graph.fill(had.units, had.traces)
            self._size_bytes[had.key.tenant] += graph.size_bytes
            self._set_worth(had.key, had.uses + self._uses / _HALVED_AFTER)
            for work_s in graph.work_s[-_POOL_RENEWED:].tolist():
                self._pool.add(work_s)
                self._pools[had.key.tenant].add(work_s)
            self._make_room(had.key)

    def _new(self, key: ClassKey) -> PDGraph:
        config = self._config
        most_bytes = config.max_mib * 2**20 // _SHARE_OF_ONE
        graph = PDGraph(config.window_traces, config.enough_traces, most_bytes, self._rates)
        self._graphs[key] = graph
        self._count[key.tenant] = self._count.get(key.tenant, 0) + 1
        self._size_bytes.setdefault(key.tenant, 0)
        self._pools.setdefault(key.tenant, _Pool(config.enough_traces))
        return graph

    def _use(self, key: ClassKey) -> None:
        """The logarithm of a count that halves is kept relative to a fixed instant, so that those
        of all classes stay comparable without being touched."""
        self._uses += 1
        now = self._uses / _HALVED_AFTER
        self._set_worth(key, float(np.logaddexp2(self._worth.get(key, -math.inf), now)))

    def _set_worth(self, key: ClassKey, worth: float) -> None:
        self._worth[key] = worth
        ranked = self._by_worth.setdefault(key.tenant, [])
        heapq.heappush(ranked, (worth, key))
        if len(ranked) > 64 + 4 * self._count[key.tenant]:
            ranked[:] = [
                (self._worth[kept], kept) for kept in self._graphs if kept.tenant == key.tenant
            ]
            heapq.heapify(ranked)

    def _make_room(self, newest: ClassKey) -> None:
        """Not at the cost of ``newest``, which has had no time yet to show what it is worth."""
        while len(self._graphs) > self._config.max_classes:
            self._evict(max(self._count, key=self._count.__getitem__), newest)
        most_bytes = self._config.max_mib * 2**20
        while self.size_bytes > most_bytes and len(self._graphs) > 1:
            self._evict(max(self._size_bytes, key=self._size_bytes.__getitem__), newest)

    def _evict(self, tenant: str, newest: ClassKey) -> None:
        if self._count[tenant] == 1 and newest.tenant == tenant:
            tenant = next(other for other in self._count if other != tenant)
        ranked = self._by_worth[tenant]
        spared: list[tuple[float, ClassKey]] = []
        while True:
            worth, key = heapq.heappop(ranked)
            if key == newest:
                spared.append((worth, key))
            elif self._worth.get(key) == worth:
                break
        for entry in spared:
            heapq.heappush(ranked, entry)
        self.evicted += 1
        del self._worth[key]
        self._size_bytes[tenant] -= self._graphs.pop(key).size_bytes
        self._count[tenant] -= 1
        if not self._count[tenant]:
            for of_tenants in (self._count, self._size_bytes, self._by_worth, self._pools):
                del of_tenants[tenant]


class _Pool:
    """Work of instances of any class, the newest."""

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self._work_s: deque[float] = deque(maxlen=_POOLED)
        self._new = 0
        self.index_s = 0.0

    @property
    def known(self) -> bool:
        return len(self._work_s) >= self._enough

    def add(self, work_s: float) -> None:
        self._work_s.append(work_s)
        self._new += 1
        if self._new >= _POOL_RENEWED or len(self._work_s) == self._enough:
            self._new = 0
            self.index_s = bucketed(np.sort(np.array(self._work_s))).at(0.0)
