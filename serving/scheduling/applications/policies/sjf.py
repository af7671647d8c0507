"""The shortest job first, by the mean of its class."""

from __future__ import annotations

from collections.abc import Collection

from serving.scheduling.applications.live import Ask, Live
from serving.scheduling.applications.prospects import Prospects


class ShortestMean:
    """What instances of the class need on average, from their beginning to their end, whatever this
    one has shown since. A class without a history comes first, as with the least of all means."""

    demands = True

    def __init__(self, prospects: Prospects) -> None:
        self._prospects = prospects
        self._means_s: dict[Live, float] = {}

    def tick(self, lives: Collection[Live], now_s: float) -> None:
        """Forgets those that have ended."""
        if len(self._means_s) > 2 * len(lives) + 16:
            known = self._means_s
            self._means_s = {live: known[live] for live in lives if live in known}

    def rank(self, live: Live, ask: Ask, now_s: float) -> float:
        mean_s = self._means_s.get(live)
        if mean_s is None:
            began = Live(live.key, live.instance, live.arrived_s)
            needs_s = self._prospects.prospect(began).device_s
            mean_s = self._means_s[live] = float(needs_s.mean()) if needs_s.size else 0.0
        return mean_s

    def served(self, live: Live, prompt_tokens: int, output_tokens: int) -> None:
        pass
