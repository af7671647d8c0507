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
CHOOSING = ("curves", "train", "serve")  # among policies, among models
SERVING = "serve"
REPLAYING = (SERVING, "gittins")  # traces
SOAK = "soak"
DTYPES: dict[str, Literal["float32", "bfloat16"]] = {SERVING: "bfloat16"}
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
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="What models compute in; float32, and bfloat16 where they serve."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Of the curves, this policy's; of train and serve, this model; of serve, offline, "
            "stack, loads or pressure alone; may be repeated.",
        ),
    ] = None,
    trace: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Of serve and gittins: Azure's .csv or Mooncake's .jsonl too; may be repeated.",
        ),
    ] = None,
    vllm: Annotated[
        Path | None,
        typer.Option(metavar="PYTHON", help="Of serve: the Python that has vLLM."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.5, help="Of soak: for how long, instead of 30.")
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
            fix=f"leave out --only, which is an option of hecate bench {', '.join(CHOOSING)}",
        )
    if trace and name not in REPLAYING:
        raise ConfigError(
            f"hecate bench {name} replays no traces",
            got=f"--trace {trace[0]}",
            fix=f"leave it out; it is an option of hecate bench {', '.join(REPLAYING)}",
        )
    if vllm and name != SERVING:
        raise ConfigError(
            f"hecate bench {name} has no vLLM beside it",
            got=f"--vllm {vllm}",
            fix="leave it out; it is an option of hecate bench serve",
        )
    if minutes and name != SOAK:
        raise ConfigError(
            f"hecate bench {name} takes as long as it takes",
            got=f"--minutes {minutes:g}",
            fix=f"leave it out; it is an option of hecate bench {SOAK}",
        )
    documents = []
    for each in names:
        options = BenchOptions(
            quick=quick,
            dtype=dtype or DTYPES.get(each, "float32"),
            only=tuple(only or ()),
            trace=tuple(map(str, trace or ())),
            vllm=str(vllm or ""),
            minutes=minutes or 0.0,
        )
        report = BENCHES[each](options)
        render(report, Console())
        documents.append(document(report, commit=source_commit(CHECKOUT), machine=machine_facts()))
    if json is not None:
        write_json(json, documents if name == ALL else documents[0])
