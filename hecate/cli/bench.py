"""``hecate bench NAME``, or ``all``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from hecate.bench import (
    BENCHES,
    BenchOptions,
    document,
    machine_facts,
    render,
    source_commit,
    write_json,
)
from hecate.config import nearest_name
from hecate.errors import ConfigError

ALL = "all"
CHOOSING = ("curves", "train")  # among policies, among models
CHECKOUT = Path(__file__).parents[2]


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"{', '.join(BENCHES)} or {ALL}.")],
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the rows and the summary here.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Every summary figure, within 10 minutes.")
    ] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="What models compute in.")
    ] = "float32",
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Of the curves, this policy's; of train, this model; may be repeated.",
        ),
    ] = None,
) -> None:
    """Run the benchmark, print its table and its summary; of ``all``, the JSON file is a list."""
    names = list(BENCHES) if name == ALL else [name]
    if name not in (*BENCHES, ALL):
        near = nearest_name(name, BENCHES)
        raise ConfigError(
            f"there is no benchmark {name}",
            expected=f"one of {', '.join((*BENCHES, ALL))}",
            fix=f"did you mean {near}?" if near else "",
        )
    if only and name not in CHOOSING:
        raise ConfigError(
            f"hecate bench {name} has nothing to choose from",
            got=f"--only {only[0]}",
            expected="no --only",
            fix=f"leave out --only, which is an option of hecate bench {' and '.join(CHOOSING)}",
        )
    options = BenchOptions(quick=quick, dtype=dtype, only=tuple(only or ()))
    documents = []
    for each in names:
        report = BENCHES[each](options)
        render(report, Console())
        documents.append(document(report, commit=source_commit(CHECKOUT), machine=machine_facts()))
    if json is not None:
        write_json(json, documents if name == ALL else documents[0])
