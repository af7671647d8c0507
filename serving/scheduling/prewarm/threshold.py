"""From which chance on to warm, so that no more is wasted than is allowed."""

from __future__ import annotations

import math

_STEP = 0.1  # in log odds, for a budget missed by its whole
_SCALE = 0.05  # of the newest, in what a step is measured by
_FARTHEST = 6.0  # in log odds: 0.0025 to 0.9975


class Threshold:
    """Moves in small steps to where a second saved costs ``budget`` seconds of holding.

    A stochastic approximation (Robbins and Monro, 1951) with steps of a fixed size, so that it
    follows a load that changes.
    """

    def __init__(self, first: float, budget: float) -> None:
        """``budget`` 0: it never moves."""
        assert first > 0
        self._budget = budget
        self._fixed = first
        self._odds = math.log(first / (1 - first)) if first < 1 else _FARTHEST
        self._seen = (0.0, 0.0)
        self._scale = 0.0

    @property
    def chance(self) -> float:
        if not self._budget:
            return self._fixed
        return 1 / (1 + math.exp(-self._odds))

    def learn(self, saved_s: float, held_s: float) -> None:
        """Totals of the ledger so far."""
        saved, held = saved_s - self._seen[0], held_s - self._seen[1]
        allowed = self._budget * saved
        if not self._budget or not held + allowed:
            return
        self._seen = (saved_s, held_s)
        self._scale += (held + allowed - self._scale) * (_SCALE if self._scale else 1.0)
        moved = _STEP * max(-1.0, min(1.0, (held - allowed) / self._scale / 2))
        self._odds = min(_FARTHEST, max(-_FARTHEST, self._odds + moved))
