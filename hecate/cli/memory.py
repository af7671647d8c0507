"""``hecate memory CONFIG``: what a rank would take, for any number of ranks, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hecate.config import load_config
from hecate.train.config import RunConfig
from hecate.train.footprint.estimate import estimate
from hecate.train.footprint.table import table
from hecate.train.memory import resident_bytes


def command(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/train.")
    ],
    ranks: Annotated[int, typer.Option(help="Over how many ranks.", min=1)] = 1,
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(help="What the ranks compute on; none is needed here.")
    ] = "cpu",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Override one key; may be repeated."),
    ] = None,
) -> None:
    """Estimate the memory of the fullest rank; nothing is allocated, read or trained."""
    value = load_config(RunConfig, config, set_ or ()).value
    footprint = estimate(
        value,
        world_size=ranks,
        vocab_size=value.data.tokenizer.vocab_size,
        device_type=device,
        process_bytes=resident_bytes(),
    )
    print(f"the fullest of {ranks} ranks on {device}, estimated from {config}:")
    print(table(footprint))
