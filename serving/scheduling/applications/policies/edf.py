"""The earliest deadline first."""

from __future__ import annotations

from collections.abc import Collection

from serving.scheduling.applications.live import Ask, Live


class EarliestDeadline:
    """Those without a deadline come last, in order of arrival."""

    demands = False

    def tick(self, lives: Collection[Live], now_s: float) -> None:
        pass

    def rank(self, live: Live, ask: Ask, now_s: float) -> float:
        return live.deadline_s

    def served(self, live: Live, prompt_tokens: int, output_tokens: int) -> None:
        pass
