"""What a benchmark is asked, what it answers, and the two forms of its answer: a table and JSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hecate.config import Config, nearest_name
from hecate.errors import ConfigError
from hecate.files import write_text

Row = Mapping[str, JsonValue]

_WIDEST = 1000


class BenchOptions(Config):
    """What every benchmark is told.

    ``quick``: fewer rounds, but every summary key and the worst-case rows. ``dtype``: what models
    compute in. ``only``: of the curves, those of these policies, of training, these models, of
    serving, these models and parts; all where there is none. ``trace``: files of traces whose
    requests serving replays, and at whose times applications come. Of serving: ``vllm``: a Python
    that has vLLM, "" for the one that is found. Of the soak: ``minutes``; 0 for its own.
    """

    quick: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    only: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()
    vllm: str = ""
    minutes: float = Field(default=0.0, ge=0)


def require_known(refusal: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise ``ConfigError``, which begins with ``refusal``, for the first name not in ``known``."""
    for name in names:
        if name not in known:
            near = nearest_name(name, known)
            raise ConfigError(
                refusal,
                got=name,
                expected=f"one of {'; '.join(known)}",
                fix=f"did you mean {near}?" if near else "",
            )


@dataclass(frozen=True)
class Report:
    """What a benchmark found.

    ``columns``: the keys of ``rows`` that the table shows, with their titles; rows may hold more. A
    row that was simulated has ``"simulated": True``. ``notes``: sentences for the reader of the
    table. ``summary``: the figures to compare from one run to the next.
    """

    bench: str
    settings: Mapping[str, JsonValue]
    columns: Mapping[str, str]
    rows: tuple[Row, ...]
    summary: Mapping[str, float]
    notes: tuple[str, ...] = ()


def document(report: Report, *, commit: str, machine: Mapping[str, JsonValue]) -> dict[str, object]:
    """The report as the JSON object that ``--json`` writes."""
    return {
        "bench": report.bench,
        "commit": commit,
        "machine": dict(machine),
        "settings": dict(report.settings),
        "rows": [dict(row) for row in report.rows],
        "summary": dict(report.summary),
    }


def write_json(path: Path, content: object) -> None:
    """Write ``content``, whole or not at all. Raises ``StorageError``."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def render(report: Report, console: Console) -> None:
    """The table, the notes, and the summary last."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    numeric = {key for key in report.columns if _is_numeric(report.rows, key)}
    for key, title in report.columns.items():
        table.add_column(title, justify="right" if key in numeric else "left", overflow="fold")
    for row in report.rows:
        cells = [Text(show(row.get(key))) for key in report.columns]
        if row.get("simulated"):
            cells[0].append(" (simulated)")
        table.add_row(*cells)
    # A file or a pipe has no width of its own: there a row is a line.
    wide = console if console.is_terminal else Console(file=console.file, width=_WIDEST)
    wide.print(table)
    if report.notes:
        console.print()
    for note in report.notes:
        console.print(Text(f"- {note}"), soft_wrap=True)
    console.print()
    console.print(Text(f"{report.bench}: summary", style="bold"))
    width = max(map(len, report.summary), default=0)
    for name, value in report.summary.items():
        console.print(Text(f"{name:<{width}}  {show(value)}"), soft_wrap=True)


def show(value: JsonValue) -> str:
    """A cell: numbers to four digits, nothing for what is missing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)


def _is_numeric(rows: tuple[Row, ...], key: str) -> bool:
    present = [row[key] for row in rows if row.get(key) is not None]
    return bool(present) and all(isinstance(value, int | float) for value in present)
