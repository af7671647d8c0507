"""Who trains: decided anew each time somebody died. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Roster:
    """The slots of a machine, each a place for one rank, and which of them take part.

    Ranks are slots in order. ``least``: with fewer the job ends. ``attempts``: failures without a
    newer checkpoint; after them the slots that failed in each take no further part, until there is
    one. ``replaces``: whether a slot whose process died gets another. ``saved``: the step of the
    newest checkpoint at the last failure. ``failures`` since it, and by slot in ``blamed``.
    """

    slots: tuple[int, ...]
    least: int
    attempts: int
    replaces: bool
    present: tuple[int, ...]
    saved: int = 0
    failures: int = 0
    blamed: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, ranks: int, *, least: int, attempts: int, replaces: bool) -> Roster:
        slots = tuple(range(ranks))
        return cls(slots, least, attempts, replaces, present=slots)

    @property
    def world_size(self) -> int:
        return len(self.present)

    def after(self, dead: Collection[int], saved: int) -> Roster | None:
        """The next one when the processes of the slots ``dead`` died; ``None``: the job ends.

        ``saved``: the step of the newest checkpoint, 0 without.
        """
        fresh = self if saved <= self.saved else self._forgiven(saved)
        blamed = fresh.blamed | {slot: fresh.blamed.get(slot, 0) + 1 for slot in dead}
        failures = fresh.failures + 1
        present = fresh.present
        if not self.replaces:
            present = tuple(slot for slot in present if slot not in dead)
        if failures >= self.attempts:
            culprits = {slot for slot, times in blamed.items() if times >= failures}
            present = tuple(slot for slot in present if slot not in culprits)
            if not culprits:
                return None
            failures, blamed = 0, {}
        if len(present) < self.least:
            return None
        return replace(fresh, present=present, failures=failures, blamed=blamed)

    def _forgiven(self, saved: int) -> Roster:
        """With a clean record; slots that were left out are back where they can be filled."""
        present = self.slots if self.replaces else self.present
        return replace(self, present=present, saved=saved, failures=0, blamed={})
