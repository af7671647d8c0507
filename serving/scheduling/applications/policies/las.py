"""The least attained service first (Autellix, 2502.13965): nothing has to be known of demand."""

from __future__ import annotations

from collections.abc import Collection

from serving.scheduling.applications.live import Ask, Live


class LeastAttained:
    """By application: all that its calls have had of the device so far."""

    demands = True

    def tick(self, lives: Collection[Live], now_s: float) -> None:
        pass

    def rank(self, live: Live, ask: Ask, now_s: float) -> float:
        return live.attained_s

    def served(self, live: Live, prompt_tokens: int, output_tokens: int) -> None:
        pass
