"""What a request says of the application that it is part of. Anybody may say anything: what cannot
be read makes a request untagged, never refused, and nothing here says how urgent it is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from serving.scheduling.applications.traces import Kind

# HTTP headers, and the names of the same things in a body's ``application``.
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "x-app-class": "class",
        "x-app-id": "id",
        "x-unit": "unit",
        "x-unit-kind": "kind",
        "x-deadline": "deadline_s",
        "x-app-last": "last",
    }
)
FIELDS = frozenset(HEADERS.values())
CALL = "call"  # the unit of requests that name none
_NAME = re.compile(r"[\w.:/@+-][\w .:/@+-]*", re.ASCII)
_LONGEST = 128
_LONGEST_DEADLINE_S = 30 * 86400.0
_TRUTHS: Mapping[str, bool] = MappingProxyType(
    {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
)


@dataclass(frozen=True)
class Tags:
    """``application``: the name of its class, empty for an untagged request. ``instance``: empty
    for an instance of one request. ``deadline_s``: after the instance's first request. ``last``:
    the instance ends with what is open."""

    application: str = ""
    instance: str = ""
    unit: str = CALL
    kind: Kind = Kind.LLM
    deadline_s: float = math.inf
    last: bool = False

    @property
    def tagged(self) -> bool:
        return bool(self.application)


UNTAGGED = Tags()


def read(fields: Mapping[str, object]) -> Tags:
    """Tags of ``fields``, named as in ``FIELDS``, each a text or what JSON has for it; untagged if
    there are none. Raises ``ValueError`` that says what, got, expected and the way to mend it."""
    unknown = sorted(set(fields) - FIELDS)
    if unknown:
        raise ValueError(
            f"no such field of an application: {unknown[0][:_LONGEST]!r}; one of {sorted(FIELDS)}"
        )
    if not fields:
        return UNTAGGED
    application = _name(fields, "class", "")
    if not application:
        raise ValueError("an application needs a class: the name that all its instances share")
    kind = fields.get("kind", Kind.LLM.value)
    kinds = [each.value for each in Kind]
    if kind not in kinds:
        raise ValueError(f"kind of a unit: got {_shown(kind)}, expected one of {kinds}")
    return Tags(
        application,
        _name(fields, "id", ""),
        _name(fields, "unit", CALL),
        Kind(kind),
        _deadline(fields.get("deadline_s", math.inf)),
        _truth(fields.get("last", False)),
    )


class Reader:
    """Reads tags, and counts those that cannot be read; of each class of mistake it warns once."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._warned: set[str] = set()
        self.malformed = 0

    def read(self, fields: Mapping[str, object]) -> Tags:
        """``UNTAGGED`` where ``fields`` cannot be read."""
        try:
            return read(fields)
        except ValueError as error:
            self.malformed += 1
            mistake = str(error).partition(":")[0]
            if mistake not in self._warned:
                self._warned.add(mistake)
                self._warn(f"a request's tags are not understood, it goes untagged: {error}")
            return UNTAGGED


def _name(fields: Mapping[str, object], field: str, default: str) -> str:
    name = fields.get(field, default)
    if name == default:
        return default
    if not isinstance(name, str) or len(name) > _LONGEST or not _NAME.fullmatch(name):
        raise ValueError(
            f"{field} of an application: got {_shown(name)}, expected 1 to {_LONGEST} of letters, "
            "digits, spaces and . : / @ + - _, no space first"
        )
    return name


def _deadline(given: object) -> float:
    try:
        seconds = float(given) if isinstance(given, str | int | float) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if seconds == math.inf and not isinstance(given, str):
        return seconds
    if isinstance(given, bool) or not 0 < seconds <= _LONGEST_DEADLINE_S:
        raise ValueError(
            f"deadline of an application: got {_shown(given)}, expected seconds above 0, up to "
            f"{_LONGEST_DEADLINE_S:.0f}"
        )
    return seconds


def _truth(given: object) -> bool:
    truth = given if isinstance(given, bool) else _TRUTHS.get(str(given).lower())
    if truth is None:
        raise ValueError(f"last of an application: got {_shown(given)}, expected true or false")
    return truth


def _shown(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."
