"""The Gittins index of what an instance still needs (2506.14851, section 4): on one server, the
order of the least mean completion where demands are known in distribution alone."""

from __future__ import annotations

from collections.abc import Collection

from serving.scheduling.applications.live import Ask, Live
from serving.scheduling.applications.prospects import Prospects
from serving.scheduling.applications.ranks import Ranks


class Gittins:
    """As of the last tick; instances of which nothing is known, and those that have outlived all
    that is, go by what they have had."""

    demands = True

    def __init__(self, prospects: Prospects) -> None:
        self._ranks = Ranks(prospects)

    def tick(self, lives: Collection[Live], now_s: float) -> None:
        self._ranks.tick(lives)

    def rank(self, live: Live, ask: Ask, now_s: float) -> float:
        return self._ranks.of(live)

    def served(self, live: Live, prompt_tokens: int, output_tokens: int) -> None:
        pass
