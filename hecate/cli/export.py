"""``hecate export RUN OUT``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hecate.checkpoint.export import export_run


def command(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path, typer.Argument(help="The Hugging Face folder to write.")],
    step: Annotated[
        str, typer.Option(metavar="newest|STEP", help="Which checkpoint to export.")
    ] = "newest",
) -> None:
    """Export, and say where."""
    export_run(run, out, step=step)
    print(f"wrote {out}")
