"""``hecate report RUN``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hecate.report import report


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="RUN/report.html without it.")
    ] = None,
) -> None:
    """Draw the run, and say where, how large, and what is missing."""
    written = report(run, out)
    print(f"wrote {written.path}, {written.size_bytes / 1e6:.2f} MB")
    for sentence in written.missing:
        print(f"- {sentence}")
