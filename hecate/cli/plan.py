"""``hecate plan RUN|TRACE``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hecate.bench.report import write_json
from hecate.files import write_text
from hecate.train.plans import compare, document, draw, show


def command(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN|TRACE", help="A run's folder, or a file such as loads.jsonl."),
    ],
    policy: Annotated[
        str, typer.Option(metavar="A,B,...", help="Which policies; all of them without it.")
    ] = "",
    ranks: Annotated[
        int, typer.Option(help="Over how many ranks; 0 is as many as recorded.", min=0)
    ] = 0,
    nodes: Annotated[
        int, typer.Option(help="On how many nodes, as many ranks on each.", min=0)
    ] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="experts.A=VALUE",
            help="Over the run's settings and the costs that it measured; may be repeated.",
        ),
    ] = None,
    step: Annotated[
        int, typer.Option(help="Whose placement to show; 0 is the last step.", min=0)
    ] = 0,
    layer: Annotated[
        int, typer.Option(help="Which MoE layer to show; -1 is the least even.", min=-1)
    ] = -1,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw it here as well.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every figure and step here.")
    ] = None,
) -> None:
    """Replay the loads, compare the policies, draw what each would have done."""
    names = policy.split(",") if policy else []
    comparison = compare(source, names, ranks=ranks, nodes=nodes, overrides=set_ or ())
    show(comparison, Console(), step=step, layer=layer)
    if picture is not None:
        write_text(picture, draw(comparison, step=step, layer=layer))
    if json is not None:
        write_json(json, document(comparison))
