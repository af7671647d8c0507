"""What each was served, of those between whom it is to be even."""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, TypeVar

Who = TypeVar("Who")


class Counters(Generic[Who]):
    """The counters of the virtual token counter (Sheng et al., OSDI 2024, algorithm 2): who comes
    back with work goes on from the least that others with work had, so that idleness is no credit.

    What is no more than that least is forgotten of who has no work, since it would come to no more.
    """

    def __init__(self) -> None:
        self._had: dict[Who, float] = {}
        self._active: dict[Who, None] = {}

    def __len__(self) -> int:
        return len(self._had)

    @property
    def least(self) -> float:
        """Of those with work."""
        return min((self._had[who] for who in self._active), default=0.0)

    def work(self, active: Collection[Who]) -> None:
        """These have work now, others have none."""
        for who in [who for who in self._active if who not in active]:
            del self._active[who]
        for who in active:
            self._lift(who)
        least = self.least
        for who in [who for who, had in self._had.items() if had <= least]:
            if who not in self._active:
                del self._had[who]

    def had(self, who: Who) -> float:
        self._lift(who)
        return self._had[who]

    def add(self, who: Who, amount: float) -> None:
        self._lift(who)
        self._had[who] += amount

    def _lift(self, who: Who) -> None:
        if who not in self._active:
            self._had[who] = max(self._had.get(who, 0.0), self.least)
            self._active[who] = None
