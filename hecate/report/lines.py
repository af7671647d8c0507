"""A file of JSON lines, read once from end to end, however long it is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hecate.errors import StorageError
from hecate.report.records import Damage

MOST_STEPS = 1 << 53  # more than the page's script can count


@dataclass(frozen=True)
class Line:
    """Where a line begins in its file, its bytes, and whether it ends."""

    offset: int
    text: bytes
    whole: bool


def lines_of(path: Path) -> Iterator[Line]:
    """Every line; none of a file that is not there. Raises ``StorageError`` for one that cannot be
    read."""
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            offset = 0
            for text in file:
                yield Line(offset, text.rstrip(b"\r\n"), text.endswith(b"\n"))
                offset += len(text)
    except OSError as error:
        raise unreadable(path, error) from error


def line_at(path: Path, offset: int) -> bytes:
    """The line that begins at ``offset``."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.readline()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot read {path}",
        got=error.strerror or str(error),
        expected="a readable file",
        fix="make it readable, or copy the run's folder without it",
    )


def parsed(text: bytes) -> dict[str, Any] | None:
    """The object that ``text`` is, or None where it is no object with a step to count from."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if type(step) is int and 0 <= step < MOST_STEPS else None


def number(value: object) -> float:
    """``value`` as a finite number, or NaN."""
    try:
        found = float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:  # a whole number of more than 300 digits
        return math.nan
    return found if math.isfinite(found) else math.nan


class Tally:
    """Counts what a reader passes over."""

    def __init__(self) -> None:
        self._cut = False
        self._unreadable = self._repeated = 0
        self._back_to: list[int] = []

    def unread(self, line: Line) -> None:
        """``line`` is no record: an unfinished end, or something else in the middle."""
        self._cut |= not line.whole
        self._unreadable += line.whole

    def repeated(self, num_lines: int, step: int) -> None:
        """``num_lines`` before this one were of ``step`` or a later one, as those from here are."""
        if num_lines:
            self._repeated += num_lines
            self._back_to.append(step)

    def damage(self) -> Damage:
        return Damage(self._cut, self._unreadable, self._repeated, tuple(self._back_to))
