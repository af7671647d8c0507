"""``profile/summary.json`` -> what the steps that were profiled spent on, and left exposed.

``hecate.train.profile`` writes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hecate.report.lines import number, unreadable

FILE = Path("profile", "summary.json")


@dataclass(frozen=True)
class Profile:
    """Seconds of one step, means over ``num_ranks``.

    ``phases``: name -> forward, backward. ``communication``: kind -> under way, hidden, exposed.
    """

    first_step: int
    last_step: int
    num_ranks: int
    step_s: float
    phases: Mapping[str, tuple[float, float]]
    communication: Mapping[str, tuple[float, float, float]]


def read_profile(path: Path) -> Profile | None:
    """None where none was made, or what lies there is not one. Raises ``StorageError``."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError:
        return None
    try:
        ranks = record["ranks"]
        if not ranks:
            return None
        first, steps = int(record["first_step"]), int(record["steps"])
        return Profile(
            first,
            first + steps - 1,
            len(ranks),
            _mean(rank["step_s"] for rank in ranks),
            {
                name: (two[0], two[1])
                for name, two in _means(ranks, "phases", ("forward_s", "backward_s")).items()
            },
            {
                name: (three[0], three[1], three[2])
                for name, three in _means(
                    ranks, "communication", ("under_way_s", "hidden_s", "exposed_s")
                ).items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _means(ranks: list[Any], table: str, columns: tuple[str, ...]) -> dict[str, list[float]]:
    names = {str(name): None for rank in ranks for name in rank[table]}
    return {
        name: [_mean(rank[table].get(name, {}).get(key, 0.0) for rank in ranks) for key in columns]
        for name in names
    }


def _mean(values: Iterable[object]) -> float:
    numbers = [number(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a time that is no number")
    return sum(numbers) / len(numbers)
