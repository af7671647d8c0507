"""``hecate eval RUN``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from hecate.train.evaluate import evaluate_run


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    ema: Annotated[bool, typer.Option("--ema", help="The average of its weights.")] = False,
) -> None:
    """Evaluate, with as many ranks as the launcher started; rank 0 prints one figure a line."""
    figures = evaluate_run(run, averaged=ema)
    if os.environ.get("RANK", "0") == "0":
        width = max(map(len, figures), default=0)
        for name, value in figures.items():
            print(f"{name:<{width}}  {value:.6g}")
