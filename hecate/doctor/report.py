"""The doctor's findings, and how they look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

Status = Literal["ok", "warn", "missing"]

_STYLES: dict[Status, str] = {"ok": "green", "warn": "yellow", "missing": "red"}


@dataclass(frozen=True)
class Row:
    """One finding; ``fix`` says how to get what is missing. Hecate runs without what is not
    ``required``."""

    topic: str
    value: str
    status: Status = "ok"
    fix: str = ""
    required: bool = False


@dataclass(frozen=True)
class Report:
    """All findings, in the order in which they are shown."""

    rows: tuple[Row, ...]

    @property
    def lacking(self) -> tuple[Row, ...]:
        """What Hecate cannot run without and does not find here."""
        return tuple(row for row in self.rows if row.required and row.status == "missing")

    @property
    def exit_code(self) -> int:
        return 1 if self.lacking else 0


def render(report: Report, console: Console) -> None:
    """A table of the findings, then what to do about them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("topic", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found here", overflow="fold")
    for row in report.rows:
        mark = "optional" if row.status == "missing" and not row.required else row.status
        style = _STYLES[row.status] if mark == row.status else "dim"
        table.add_row(Text(row.topic), Text(mark, style=style), Text(row.value))
    console.print(table)
    fixes = [row for row in report.rows if row.fix]
    if fixes:
        console.print()
        console.print(Text("What would help", style="bold"))
    for row in fixes:
        console.print(Text(f"  {row.topic}: {row.fix}"), soft_wrap=True)
    console.print()
    if report.lacking:
        topics = ", ".join(row.topic for row in report.lacking)
        console.print(Text(f"Hecate cannot run here yet: {topics}", style="red"), soft_wrap=True)
    else:
        console.print(Text("Hecate runs here.", style="green"))
