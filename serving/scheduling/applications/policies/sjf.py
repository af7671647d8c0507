"""The shortest job first, by the mean of its class."""

from __future__ import annotations

from collections.abc import Collection

from serving.scheduling.applications.live import Ask, Live
from serving.scheduling.applications.prospects import Prospects


class ShortestMean:
    """What an instance still needs on average, of all that its class ever showed. A class without
    a history comes first, as it would with the least of all means."""

    demands = True

    def __init__(self, prospects: Prospects) -> None:
        self._prospects = prospects

    def tick(self, lives: Collection[Live], now_s: float) -> None:
        pass

    def rank(self, live: Live, ask: Ask, now_s: float) -> float:
        prospect = self._prospects.prospect(live)
        if not prospect.device_s.size:
            return 0.0
        had_s = live.attained_s - prospect.attained_s
        return max(0.0, float(prospect.device_s.mean()) - had_s)

    def served(self, live: Live, prompt_tokens: int, output_tokens: int) -> None:
        pass
