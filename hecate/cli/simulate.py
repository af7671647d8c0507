"""``hecate simulate CLUSTER WORKLOAD``: a step's time and memory on a machine that is not here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hecate.bench import document, machine_facts, render, source_commit, write_json
from hecate.bench.simulated import simulated_report
from hecate.errors import ConfigError
from hecate.files import write_text
from hecate.simulate.files import load_cluster, load_workload
from hecate.simulate.picture import draw_scaling
from hecate.simulate.run import QUICK
from hecate.simulate.strategies import STRATEGIES, strategy_named
from hecate.simulate.sweep import sweep

CHECKOUT = Path(__file__).parents[2]


def command(
    cluster: Annotated[
        str, typer.Argument(metavar="CLUSTER", help="A file, or a name from configs/cluster.")
    ],
    workload: Annotated[
        str,
        typer.Argument(
            metavar="WORKLOAD", help="A file, or a name from configs/workload; several with commas."
        ),
    ],
    devices: Annotated[
        str, typer.Option(metavar="N,...", help="How many; 8-64 doubles from 8 to 64.")
    ] = "32",
    policies: Annotated[
        str, typer.Option(metavar="NAME,...", help=f"Some of {', '.join(STRATEGIES)}.")
    ] = ",".join(STRATEGIES),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Override one key of each workload."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw it over devices here.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the rows here.")] = None,
) -> None:
    """Simulate steps of training under each policy; every row says that it is simulated."""
    described = load_cluster(cluster)
    workloads = [load_workload(name, set_ or ()) for name in workload.split(",")]
    strategies = [strategy_named(name.strip()) for name in policies.split(",")]
    counts = parse_devices(devices)
    rows = [row for each in workloads for row in sweep(described, each, counts, strategies, QUICK)]
    report = simulated_report(described, workloads, rows, QUICK)
    render(report, Console())
    if picture is not None:
        write_text(picture, draw_scaling(described.name, rows))
    if json is not None:
        commit = source_commit(CHECKOUT)
        write_json(json, document(report, commit=commit, machine=machine_facts()))


def parse_devices(text: str) -> list[int]:
    """``"8,32"`` as it stands, ``"8-64"`` as 8, 16, 32, 64. Raises ``ConfigError``."""
    counts: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or int(first) < 1:
            raise ConfigError(
                "--devices is not a list of numbers",
                got=text,
                expected="numbers from 1 up with commas between them, or a range such as 8-4096",
                fix="--devices 8,32 or --devices 8-4096",
            )
        count = int(first)
        counts.append(count)
        while dash and 2 * count <= int(last):
            count *= 2
            counts.append(count)
    return counts
