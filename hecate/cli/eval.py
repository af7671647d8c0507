"""``hecate eval RUN``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hecate.train.evaluate import evaluate_run


def command(run: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Evaluate, and print one figure a line."""
    figures = evaluate_run(run)
    width = max(map(len, figures), default=0)
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:.6g}")
