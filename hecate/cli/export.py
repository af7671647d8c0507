"""``hecate export RUN OUT``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hecate.checkpoint.export import ExportDtype, export_run


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The Hugging Face folder to write.")],
    step: Annotated[int, typer.Option(help="Which checkpoint; 0 is the newest.", min=0)] = 0,
    dtype: Annotated[ExportDtype, typer.Option(help="What to store weights in.")] = "as_trained",
    merge: Annotated[
        bool, typer.Option("--merge", help="Of a LoRA run the whole model, not its adapters.")
    ] = False,
    ema: Annotated[bool, typer.Option("--ema", help="The average of its weights.")] = False,
) -> None:
    """Export, compare the folder with the checkpoint, and say what was written."""
    report = export_run(run, out, step=step, dtype=dtype, merge=merge, averaged=ema)
    print(
        f"wrote {report.folder}: {report.num_tensors} tensors of step {report.step} in "
        f"{report.dtype}, {report.size_bytes / 1e6:.1f} MB, read back equal"
    )
