"""The least slack first (2506.14851, section 4), weighed against what an instance still needs."""

from __future__ import annotations

import math
from collections.abc import Collection

from serving.scheduling.applications.live import Ask, Live
from serving.scheduling.applications.policies.gittins import Gittins
from serving.scheduling.applications.prospects import Prospect, Prospects, Samples

EARLY = 0.05
LEAST_WEIGHT = 0.25


class LeastSlack:
    """The Gittins index, less where a deadline comes near: times the slack, which is what is left
    until the deadline after the median path that still lies ahead, over that path, from 1 down to
    ``LEAST_WEIGHT``.

    By slack alone, as the paper has it, a few large instances whose deadlines are near hold up many
    small ones until theirs are near too, and under load hardly any is met. Who would be late even
    if it took no longer than the 5th percentile, and who has no deadline, goes by the index.
    """

    demands = True

    def __init__(self, prospects: Prospects) -> None:
        self._prospects = prospects
        self._gittins = Gittins(prospects)

    def tick(self, lives: Collection[Live], now_s: float) -> None:
        self._gittins.tick(lives, now_s)

    def rank(self, live: Live, ask: Ask, now_s: float) -> float:
        rank = self._gittins.rank(live, ask, now_s)
        left_s = live.deadline_s - now_s
        if math.isinf(left_s):
            return rank
        prospect = self._prospects.prospect(live)
        if not prospect.path_s.size or not prospect.device_s.size:
            return rank
        ahead = 1 - _done(live, prospect)
        path_s = ahead * _quantile(prospect.path_s, 0.5)
        if path_s <= 0 or left_s < ahead * _quantile(prospect.path_s, EARLY):
            return rank
        return rank * min(1.0, max(LEAST_WEIGHT, (left_s - path_s) / path_s))

    def served(self, live: Live, prompt_tokens: int, output_tokens: int) -> None:
        pass


def _done(live: Live, prospect: Prospect) -> float:
    """The share of what was ahead when its prospect was given that has been computed since."""
    needs_s = _quantile(prospect.device_s, 0.5)
    had_s = max(0.0, live.attained_s - prospect.attained_s)
    return min(1.0, had_s / needs_s) if needs_s > 0 else 0.0


def _quantile(samples: Samples, share: float) -> float:
    """Of sorted ``samples``."""
    return float(samples[int(share * (len(samples) - 1))])
