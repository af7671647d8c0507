"""A clock that never runs back and leaps no gap."""

from __future__ import annotations


class Steady:
    """Seconds since its first reading, from a clock that may jump.

    Where that one goes back, no time passes; where it leaps ahead, ``most_s`` do: a machine that
    was asleep comes back to instances that are no older than when it went.
    """

    def __init__(self, most_s: float = 60.0) -> None:
        self._most_s = most_s
        self._last_s: float | None = None
        self._now_s = 0.0

    def at(self, now_s: float) -> float:
        if self._last_s is not None:
            self._now_s += min(max(0.0, now_s - self._last_s), self._most_s)
        self._last_s = now_s
        return self._now_s
