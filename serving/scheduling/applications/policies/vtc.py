"""The virtual token counter (Sheng et al., OSDI 2024): who was served least goes first."""

from __future__ import annotations

from collections.abc import Collection

from serving.scheduling.applications.counters import Counters
from serving.scheduling.applications.live import Ask, ClassKey, Live

PROMPT_WEIGHT = 0.1  # of a token of a prompt, where one of an answer weighs 1


class VirtualTokens:
    """A client is a class of a tenant."""

    demands = False

    def __init__(self) -> None:
        self._counters: Counters[ClassKey] = Counters()

    def tick(self, lives: Collection[Live], now_s: float) -> None:
        self._counters.work(dict.fromkeys(live.key for live in lives))

    def rank(self, live: Live, ask: Ask, now_s: float) -> float:
        return self._counters.had(live.key)

    def served(self, live: Live, prompt_tokens: int, output_tokens: int) -> None:
        self._counters.add(live.key, PROMPT_WEIGHT * prompt_tokens + output_tokens)
