"""What is kept of all classes, in a file: whole or as it was before, and the work of no process
but one.

The first line says what the file is, each later one is a class, after a checksum: a line that is
damaged costs its class alone. A file that is not understood at all, such as one of a later version,
is put aside, not written over.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hecate.files import write_text
from serving.scheduling.applications.classes import ClassHistory
from serving.scheduling.applications.columns import KINDS, Packed
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.live import ClassKey
from serving.scheduling.applications.traces import Kind

VERSION = 1
_FORMAT = "hecate applications"
_ASIDE = ".not-read"

History = tuple[ClassHistory, ...]


def save(path: Path, history: History, rates: Rates) -> None:
    """Raises ``StorageError``; then the file is as it was."""
    first = {
        "format": _FORMAT,
        "version": VERSION,
        "kinds": [kind.value for kind in KINDS],
        "rates": [rates.prefill_token_s, rates.decode_token_s, rates.pace_s],
    }
    lines = [json.dumps(first), *(_line(each) for each in history), ""]
    write_text(path, "\n".join(lines))


def load(path: Path, warn: Callable[[str], None]) -> tuple[History, Rates | None]:
    """Nothing, and no rates, where there is no file, or none that can be read; ``warn`` hears of
    what could not."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return (), None
    except OSError as error:
        warn(f"cannot read {path}: {error}; what applications did before is not known")
        return (), None
    try:
        kinds, rates = _first(json.loads(lines[0]) if lines else None)
    except (ValueError, TypeError, KeyError) as error:
        aside = path.with_name(path.name + _ASIDE)
        warn(f"{path} is not a history that is understood ({error}); it is put aside as {aside}")
        try:
            os.replace(path, aside)
        except OSError as failure:
            warn(f"cannot put {path} aside: {failure}")
        return (), None
    history = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            history.append(_class(line, kinds))
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            warn(f"{path}, line {number}: a class is damaged and left out: {error}")
    return tuple(history), rates


def _line(kept: ClassHistory) -> str:
    text = json.dumps(
        {
            "tenant": kept.key.tenant,
            "name": kept.key.name,
            "uses": kept.uses,
            "units": kept.units,
            "traces": [
                [
                    packed.codes.ravel().tolist(),
                    np.round(packed.times, 6).ravel().tolist(),
                    packed.tokens.ravel().tolist(),
                ]
                for packed in kept.traces
            ],
        },
        separators=(",", ":"),
    )
    return f"{zlib.crc32(text.encode()):08x} {text}"


def _first(found: Any) -> tuple[tuple[int, ...], Rates]:
    """The numbers that the file's kinds have here, and its rates."""
    if not isinstance(found, Mapping) or found.get("format") != _FORMAT:
        raise ValueError(f"its first line does not say {_FORMAT!r}")
    if found["version"] != VERSION:
        raise ValueError(f"got version {found['version']!r}, expected {VERSION}")
    rates = [float(each) for each in found["rates"]]
    if len(rates) != 3 or not all(0 < each < np.inf for each in rates):
        raise ValueError(f"rates: got {found['rates']!r}, expected three seconds above 0")
    return tuple(KINDS.index(Kind(each)) for each in found["kinds"]), Rates(*rates)


def _class(line: bytes, kinds: tuple[int, ...]) -> ClassHistory:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        raise ValueError("its checksum is another one")
    found = json.loads(text)
    units = tuple(str(unit) for unit in found["units"])
    key = ClassKey(str(found["tenant"]), str(found["name"]))
    traces = tuple(_trace(each, len(units), kinds) for each in found["traces"])
    return ClassHistory(key, float(found["uses"]), units, traces)


def _trace(found: Any, units: int, kinds: tuple[int, ...]) -> Packed:
    codes = np.array(found[0], dtype=np.int32).reshape(-1, 4)
    times = np.array(found[1], dtype=np.float64).reshape(-1, 2)
    tokens = np.array(found[2], dtype=np.int32).reshape(-1, 3)
    sane = (
        len(codes) == len(times) > 0
        and codes.min() >= 0
        and codes[:, 0].max() < units
        and codes[:, 3].sum() == len(tokens)
        and bool(np.isfinite(times).all())
        and times.min() >= 0
        and tokens.min(initial=0) >= 0
    )
    if not sane:
        raise ValueError("a trace does not hold together")
    codes[:, 1] = np.array(kinds)[codes[:, 1]]
    return Packed(codes, times, tokens)
