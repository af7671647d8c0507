"""What the two forms of a batched adapter product cost, and which is to be taken.

Both are linear in what they touch, as CaraServe finds of BGMV and MBGMV (2401.11240, section 5):
padded ``T = p0 + p1 * rows * width``, of each segment ``T = s0 + (s1 + s2 * rows) * width``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Rows of one adapter (of one expert, in a layer of them) and the slot class it lies in."""

    rows: int
    width: int


@dataclass(frozen=True)
class FormCosts:
    """Seconds; of a slot class that goes padded, and of a segment."""

    padded_s: float
    padded_row_rank_s: float
    segment_s: float
    segment_rank_s: float
    segment_row_rank_s: float

    def padded(self, groups: Sequence[Group]) -> float:
        """Of all ``groups`` padded, one product for each slot class."""
        work = sum(group.rows * group.width for group in groups)
        return self.padded_s * len({g.width for g in groups}) + self.padded_row_rank_s * work

    def segment(self, group: Group) -> float:
        per_rank = self.segment_rank_s + self.segment_row_rank_s * group.rows
        return self.segment_s + per_rank * group.width

    def alone(self, groups: Sequence[Group]) -> list[bool]:
        """Which of ``groups`` are segments of their own, so that the whole costs least.

        Within a slot class a group goes padded where its own rows are cheaper so; all of them
        together have to make up for what the padded product costs at all.
        """
        own = [self.segment(g) - self.padded_row_rank_s * g.rows * g.width for g in groups]
        saved: dict[int, float] = {}
        for group, gain in zip(groups, own, strict=True):
            saved[group.width] = saved.get(group.width, 0.0) + max(0.0, gain)
        return [
            gain <= 0 or saved[group.width] <= self.padded_s
            for group, gain in zip(groups, own, strict=True)
        ]


# Until something was measured: launching costs as much as 20 rows of rank 16.
UNMEASURED = FormCosts(1e-5, 1e-8, 1e-5, 1e-8, 1e-9)
