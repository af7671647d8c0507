"""The shortest remaining demand first, by one who knows it: what is possible, for comparison."""

from __future__ import annotations

from collections.abc import Callable, Collection

from serving.scheduling.applications.live import Ask, Live


class Oracle:
    """``remaining_s``: what an instance will still need of the device, in truth. No server has it,
    so that this is in no table of policies."""

    demands = True

    def __init__(self, remaining_s: Callable[[Live], float]) -> None:
        self._remaining_s = remaining_s

    def tick(self, lives: Collection[Live], now_s: float) -> None:
        pass

    def rank(self, live: Live, ask: Ask, now_s: float) -> float:
        return self._remaining_s(live)

    def served(self, live: Live, prompt_tokens: int, output_tokens: int) -> None:
        pass
