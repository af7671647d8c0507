"""In which order work goes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from serving.scheduling.applications.live import Ask, Live


class Policy(Protocol):
    """Ranks requests: the smallest goes first, equal ones in order of arrival.

    ``tick`` is called now and then, and whenever a unit has ended, with all instances under way;
    ``rank`` between two ticks may be called for each request that waits or runs, and is cheap.

    ``demands``: whether ranks are seconds of the device, of which half is half as much; else their
    differences are all that they mean, as those of times.
    """

    demands: bool

    def tick(self, lives: Collection[Live], now_s: float) -> None: ...

    def rank(self, live: Live, ask: Ask, now_s: float) -> float: ...

    def served(self, live: Live, prompt_tokens: int, output_tokens: int) -> None:
        """So many tokens of ``live`` were computed since the last call."""
        ...
