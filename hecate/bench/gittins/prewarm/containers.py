"""Containers of applications, begun ahead of the units that run in them."""

from __future__ import annotations

from collections.abc import Sequence

from hecate.bench.gittins.prewarm.claims import Shapes, chance
from hecate.bench.gittins.prewarm.served import Application, NoWatcher
from serving.scheduling.applications.traces import Kind
from serving.scheduling.prewarm.config import PrewarmConfig
from serving.scheduling.prewarm.decide import Want, decide
from serving.scheduling.prewarm.ledger import Ledger
from serving.scheduling.prewarm.threshold import Threshold

KEY = "container"


class Containers(NoWatcher):
    """Each unit of ``kinds`` has one of its own, which takes ``start_s`` to be ready."""

    def __init__(
        self,
        kinds: frozenset[Kind],
        start_s: float,
        shapes: Shapes,
        config: PrewarmConfig,
        *,
        measured_from: int,
    ) -> None:
        self._kinds = kinds
        self._start_s = start_s
        self._shapes = shapes
        self._config = config
        self._measured_from = measured_from
        self._threshold = Threshold(config.threshold, config.waste_budget)
        self._all = Ledger()
        self.ledger = Ledger()
        self.thresholds: list[float] = []

    def look(self, applications: Sequence[Application], now_s: float) -> None:
        chances = [
            chance(a, KEY, self._kinds, self._shapes, self._config, self._start_s, now_s)
            for a in applications
            if a.unit.kind not in self._kinds
        ]
        self._threshold.learn(self._all.saved_s, self._all.held_s)
        self.thresholds.append(self._threshold.chance)
        found = decide(chances, self._all.warmed, self._config, self._threshold.chance)
        for want in found.give_up:
            for ledger in self._ledgers(want):
                ledger.give_up(want, now_s)
        for want in found.begin:
            for ledger in self._ledgers(want):
                ledger.begin(want, now_s, self._start_s)

    def tool(self, application: Application, now_s: float) -> float:
        if application.unit.kind not in self._kinds:
            return 0.0
        want = Want(application.job.instance, KEY)
        return max(ledger.use(want, now_s, self._start_s) for ledger in self._ledgers(want))

    def over(self, application: Application, now_s: float) -> None:
        self._shapes.over(application.live.key)
        want = Want(application.job.instance, KEY)
        for ledger in self._ledgers(want):
            ledger.give_up(want, now_s)

    def _ledgers(self, want: Want) -> list[Ledger]:
        measured = int(want.owner) >= self._measured_from
        return [self._all, self.ledger] if measured else [self._all]
