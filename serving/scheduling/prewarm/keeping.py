"""What a cache keeps of what applications use, and in which order the rest gives way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum


class Claim(IntEnum):
    """Why something is kept; the smallest stays longest."""

    NOW = 0  # a request of its application runs or waits
    SOON = 1  # it is expected before long
    LATER = 2  # its application goes on
    NONE = 3  # nobody is known to come for it


@dataclass(frozen=True)
class Kept:
    """``key``, for an application of ``rank``, the smallest first; ``used``: a number that grows
    with each use of anything."""

    key: str
    claim: Claim
    rank: float
    used: int = 0


def keeping_order(wanted: Iterable[Kept]) -> list[str]:
    """Keys, what is to be kept longest first: by claim, then in Gittins' order, then what was used
    last. Of several who want the same the strongest counts. Reversed, it is the order of eviction.
    """
    best: dict[str, Kept] = {}
    for each in wanted:
        if each.key not in best or _strength(each) < _strength(best[each.key]):
            best[each.key] = each
    return [each.key for each in sorted(best.values(), key=_strength)]


def fill(order: Sequence[str], present: Sequence[str], room: int) -> tuple[list[str], list[str]]:
    """What of the first ``room`` of ``order`` is to come, in that order, and what of ``present``
    has to go for it, who gives way first before others; what is in no list goes before all."""
    keep = order[:room]
    places = {key: place for place, key in enumerate(order)}
    come = [key for key in keep if key not in present]
    out = sorted(
        (key for key in present if key not in keep),
        key=lambda key: places.get(key, len(order)),
        reverse=True,
    )
    return come, out[: max(0, len(present) + len(come) - room)]


def _strength(kept: Kept) -> tuple[int, float, int]:
    return kept.claim, kept.rank, -kept.used
