"""``metrics.jsonl`` -> what was logged, each step once.

The run's own sink cuts the file where a run is taken up again. Where somebody put files together,
or a process was killed while it cut, the later line of a step counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hecate.report.lines import Tally, line_at, lines_of, number, parsed
from hecate.report.records import Floats, Logged, Metrics

FILE = "metrics.jsonl"
EXPERTS = "load/tokens_per_expert"

_TABLE = b'"load/tokens_per_expert":'


def read_metrics(path: Path) -> Metrics:
    """What ``path`` holds; nothing where there is no such file. Raises ``StorageError``.

    The slots of each expert, most of a line, are left where they are: see ``expert_slots``.
    """
    training: list[Logged] = []
    evaluations: list[Logged] = []
    tally = Tally()
    for line in lines_of(path):
        record = parsed(_without_table(line.text)) if line.whole else None
        if record is None:
            tally.unread(line)
            continue
        logged = _logged(record, line.offset)
        evaluated = any(name.startswith("eval/") for name in logged.values)
        if not evaluated or "loss" in logged.values:
            tally.repeated(_drop_from(training, logged.step), logged.step)
            while evaluations and evaluations[-1].step >= logged.step:
                evaluations.pop()
            training.append(logged)
        if evaluated:
            _drop_from(evaluations, logged.step)
            evaluations.append(logged)
    return Metrics(tuple(training), tuple(evaluations), tally.damage())


def expert_slots(path: Path, offset: int) -> list[Floats]:
    """Each layer's slots of each expert, ``[E]``, in the line at ``offset``; empty if none."""
    record = parsed(line_at(path, offset)) or {}
    table = record.get(EXPERTS)
    if not isinstance(table, list) or not all(_is_numbers(row) for row in table):
        return []
    return [np.array([number(one) for one in row]) for row in table]


def _drop_from(lines: list[Logged], step: int) -> int:
    dropped = 0
    while lines and lines[-1].step >= step:
        lines.pop()
        dropped += 1
    return dropped


def _without_table(text: bytes) -> bytes:
    """``text`` with null for the slots of experts, which parsing would take longest over."""
    begin = text.find(_TABLE + b"[[")
    end = text.find(b"]]", begin) if begin >= 0 else -1
    return text[:begin] + _TABLE + b"null" + text[end + 2 :] if end >= 0 else text


def _logged(record: dict[str, Any], offset: int) -> Logged:
    values: dict[str, float] = {}
    layers: dict[str, Floats] = {}
    for name, value in record.items():
        if name in ("step", "time_s", EXPERTS):
            continue
        if _is_number(value):
            values[name] = number(value)
        elif value and _is_numbers(value):
            layers[name] = np.array([number(one) for one in value])
    return Logged(record["step"], number(record.get("time_s")), values, layers, offset)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))
