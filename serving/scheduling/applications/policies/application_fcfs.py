"""First come, first served, application by application (Parrot, OSDI 2024): a later step of one
does not queue behind others that came after its first."""

from __future__ import annotations

from collections.abc import Collection

from serving.scheduling.applications.live import Ask, Live


class ApplicationFcfs:
    demands = False

    def tick(self, lives: Collection[Live], now_s: float) -> None:
        pass

    def rank(self, live: Live, ask: Ask, now_s: float) -> float:
        return live.arrived_s

    def served(self, live: Live, prompt_tokens: int, output_tokens: int) -> None:
        pass
