"""Adapters of applications: few places on the device, some in the host's memory, all on a disk.

What has to leave the device goes to the host's memory, and is in one of both only.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from hecate.bench.gittins.prewarm.claims import Shapes, chance, claimed
from hecate.bench.gittins.prewarm.served import Application, NoWatcher
from serving.scheduling.applications.traces import Call, Kind
from serving.scheduling.prewarm.config import PrewarmConfig
from serving.scheduling.prewarm.keeping import Claim, Kept, fill, keeping_order

LLM = frozenset({Kind.LLM})


@dataclass(frozen=True)
class AdapterSizes:
    """``device`` and ``host``: adapters that fit. ``disk_s``: to read one, one at a time;
    ``device_s``: to bring one from the host to the device."""

    device: int
    host: int
    disk_s: float = 0.3
    device_s: float = 0.02


class Adapters(NoWatcher):
    """``adapter``: of each application, by number. A request is a hit when it is to run and its
    adapter is on the device or in the host's memory by then."""

    def __init__(
        self,
        rule: str,
        sizes: AdapterSizes,
        adapter: Sequence[str],
        shapes: Shapes,
        config: PrewarmConfig,
        *,
        measured_from: int,
    ) -> None:
        self._rule = rule
        self._sizes = sizes
        self._adapter = adapter
        self._shapes = shapes
        self._config = config
        self._measured_from = measured_from
        self._host: OrderedDict[str, None] = OrderedDict()  # used last the longest ago first
        self._device: OrderedDict[str, None] = OrderedDict()
        self._leases: Counter[str] = Counter()
        self._wanted: list[Kept] = []
        self._loading = ""
        self._loaded_s = 0.0
        self.requests = self.hits = self.units = self.unit_hits = 0
        self._seen: set[tuple[int, int]] = set()

    def look(self, applications: Sequence[Application], now_s: float) -> None:
        self._load(now_s)
        self._wanted = claimed(
            self._rule,
            applications,
            lambda a: chance(a, "", LLM, self._shapes, self._config, self._sizes.disk_s, now_s),
            self._config.threshold,
            lambda a: self._adapter[a.number],
        )
        self._load(now_s)

    def start(self, application: Application, call: Call, now_s: float) -> float | None:
        self._load(now_s)
        key = self._adapter[application.number]
        waits_s = 0.0
        hit = key in self._device or key in self._host
        if key not in self._device:
            idle = [name for name in self._device if not self._leases[name]]
            if len(self._device) >= self._sizes.device:
                if not idle:
                    return None
                gone = self._first_out(idle)
                del self._device[gone]
                self._put(gone)
            waits_s = self._sizes.device_s
        self._count(application, hit)
        if not hit:
            waits_s += self._sizes.disk_s
            if self._loading:
                waits_s += max(0.0, self._loaded_s - now_s)
        self._host.pop(key, None)
        self._device[key] = None
        self._device.move_to_end(key)
        self._leases[key] += 1
        return waits_s

    def end(self, application: Application, call: Call, now_s: float) -> None:
        self._leases[self._adapter[application.number]] -= 1

    def over(self, application: Application, now_s: float) -> None:
        self._shapes.over(application.live.key)

    def _count(self, application: Application, hit: bool) -> None:
        if application.number < self._measured_from:
            return
        self.requests += 1
        self.hits += hit
        unit = application.number, application.place
        if unit not in self._seen:
            self._seen.add(unit)
            self.units += 1
            self.unit_hits += hit

    def _order(self) -> list[str]:
        """Of what the host's memory may hold."""
        kept = [Kept(key, Claim.NONE, 0.0, place) for place, key in enumerate(self._host)]
        order = keeping_order([*self._wanted, *kept])
        return [key for key in order if key not in self._device]

    def _first_out(self, idle: list[str]) -> str:
        """Who of ``idle`` gives its place on the device, the longest unused of equals."""
        wanted = {key: place for place, key in enumerate(keeping_order(self._wanted))}
        return max(idle, key=lambda key: wanted.get(key, len(wanted)))

    def _put(self, key: str) -> None:
        """Into the host's memory, where what is kept least goes, itself maybe."""
        self._host[key] = None
        if len(self._host) > self._sizes.host:
            places = {each: place for place, each in enumerate(self._order())}
            del self._host[max(self._host, key=lambda each: places[each])]

    def _load(self, now_s: float) -> None:
        """What came from the disk until now, one after another, who is wanted most first."""
        while True:
            if self._loading:
                if self._loaded_s > now_s:
                    return
                if self._loading not in self._host and self._loading not in self._device:
                    self._put(self._loading)
                began_s, self._loading = self._loaded_s, ""
            else:
                began_s = now_s
            wanted = [kept for kept in self._wanted if kept.key not in self._device]
            soon = [kept for kept in wanted if kept.claim <= Claim.SOON]
            order = keeping_order(soon)
            come, _ = fill(order, list(self._host), self._sizes.host)
            if not come:
                return
            self._loading, self._loaded_s = come[0], began_s + self._sizes.disk_s
