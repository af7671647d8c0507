"""What prewarming was good for: seconds that nobody waited, and seconds that something idled."""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.scheduling.prewarm.decide import Want


@dataclass(frozen=True)
class Entry:
    """Something that is warm, or gets so: begun at ``began_s``, ready at ``ready_s``."""

    began_s: float
    ready_s: float


@dataclass
class Ledger:
    """Of one backend; seconds.

    ``uses``: how often it was needed, ``hidden`` of them when it was ready. ``cold_s``: what they
    would have waited for it in all; of that ``saved_s`` they did not. ``idle_s``: ready, until it
    was used; ``wasted_s``: from its beginning until it was given up.
    """

    begun: int = 0
    given_up: int = 0
    uses: int = 0
    hidden: int = 0
    cold_s: float = 0.0
    saved_s: float = 0.0
    idle_s: float = 0.0
    wasted_s: float = 0.0
    _warm: dict[Want, Entry] = field(default_factory=dict)

    @property
    def warmed(self) -> frozenset[Want]:
        """What was begun, and neither used nor given up."""
        return frozenset(self._warm)

    @property
    def held_s(self) -> float:
        """For nothing, over all."""
        return self.idle_s + self.wasted_s

    def begin(self, want: Want, now_s: float, warm_s: float) -> None:
        """It will be ready in ``warm_s``."""
        assert want not in self._warm, f"{want} is begun twice"
        self._warm[want] = Entry(now_s, now_s + warm_s)
        self.begun += 1

    def ready(self, want: Want, now_s: float) -> None:
        """It is ready, earlier or later than it was to be."""
        entry = self._warm.get(want)
        if entry is not None:
            self._warm[want] = Entry(entry.began_s, now_s)

    def use(self, want: Want, now_s: float, warm_s: float) -> float:
        """It is needed, now, and would take ``warm_s`` if nothing had been begun; how long is left
        to wait."""
        entry = self._warm.pop(want, None)
        self.uses += 1
        self.cold_s += warm_s
        left_s = warm_s if entry is None else min(warm_s, max(0.0, entry.ready_s - now_s))
        self.saved_s += warm_s - left_s
        if entry is not None and not left_s:
            self.hidden += 1
            self.idle_s += now_s - entry.ready_s
        return left_s

    def give_up(self, want: Want, now_s: float) -> None:
        """It will not be used."""
        entry = self._warm.pop(want, None)
        if entry is not None:
            self.given_up += 1
            self.wasted_s += now_s - entry.began_s
