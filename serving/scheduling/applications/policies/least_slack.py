"""The least slack first, where there are deadlines (2506.14851, section 4)."""

from __future__ import annotations

import math
from collections.abc import Collection

from serving.scheduling.applications.live import Ask, Live
from serving.scheduling.applications.policies.gittins import Gittins
from serving.scheduling.applications.prospects import Prospects

LATE, EARLY = 0.95, 0.05
AFTER_S = 1e9  # beyond any slack


class LeastSlack:
    """Slack is what is left until the deadline after the path that still lies ahead, at its 95th
    percentile, so that one outlier of a history does not decide. Who would be late even at the 5th
    has no deadline any more: such go after the others, and by their Gittins index."""

    demands = False

    def __init__(self, prospects: Prospects) -> None:
        self._prospects = prospects
        self._gittins = Gittins(prospects)

    def tick(self, lives: Collection[Live], now_s: float) -> None:
        self._gittins.tick(lives, now_s)

    def rank(self, live: Live, ask: Ask, now_s: float) -> float:
        left_s = live.deadline_s - now_s
        if not math.isinf(left_s):
            path_s = self._prospects.prospect(live).path_s
            late_s = early_s = 0.0
            if path_s.size:
                late_s = float(path_s[int(LATE * (path_s.size - 1))])
                early_s = float(path_s[int(EARLY * (path_s.size - 1))])
            if left_s >= early_s:
                return left_s - late_s
        return AFTER_S + self._gittins.rank(live, ask, now_s)

    def served(self, live: Live, prompt_tokens: int, output_tokens: int) -> None:
        pass
