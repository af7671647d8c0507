"""``hecate doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hecate.doctor import collect, render


def command(
    folder: Annotated[Path, typer.Option(help="Where runs would be written.")] = Path("."),
) -> None:
    """Print the findings; exit code 1 where Hecate cannot run."""
    report = collect(folder)
    render(report, Console())
    raise typer.Exit(report.exit_code)
