"""``hecate train CONFIG``: alone, under torchrun, with ranks of its own, or on Ray."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from hecate.config import describe, load_config
from hecate.errors import ConfigError
from hecate.train.config import RunConfig
from hecate.train.elastic.launch import train_elastic
from hecate.train.run import train
from hecate.train.stopping import exit_code
from hecate.train.workers.launch import train_on_ray

PROFILED = "profile.enabled=true"


def command(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/train.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Override one key; may be repeated."),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|PATH|none",
            help="Continue from the run's newest checkpoint, from PATH, or start anew.",
        ),
    ] = "none",
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Record a few steps (profile.first_step, profile.steps): traces and a summary.",
        ),
    ] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="Train with ray.num_workers workers of a Ray cluster.")
    ] = False,
    ray_address: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT|auto",
            help="With --ray: a cluster that runs. Without it one is started on this machine, "
            "unless RAY_ADDRESS names one, as under ray job submit.",
        ),
    ] = "",
    ranks: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Start N ranks on this machine, and replace those that die.",
        ),
    ] = 0,
    min_ranks: Annotated[
        int,
        typer.Option(metavar="M", help="With --ranks: go on with as few as M. N unless given."),
    ] = 0,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Print every value and its origin, and end."),
    ] = False,
) -> None:
    """Train, unless only the configuration is asked for."""
    loaded = load_config(RunConfig, config, [*(set_ or ()), *([PROFILED] if profile else [])])
    if print_config:
        print(describe(loaded))
        return
    if ray_address and not ray:
        raise ConfigError("--ray-address is for --ray", got=ray_address, fix="add --ray")
    if min_ranks and not ranks:
        raise ConfigError("--min-ranks is for --ranks", got=f"{min_ranks}", fix="add --ranks N")
    if ray and ranks:
        raise ConfigError(
            "--ray and --ranks are two ways to start ranks",
            got="both",
            expected="one of them",
            fix="leave out --ranks; on Ray, ray.num_workers says how many",
        )
    if ray:
        result = train_on_ray(
            loaded.value, origins=loaded.origins, resume=resume, address=ray_address
        )
    elif ranks:
        result = train_elastic(
            loaded.value,
            ranks=ranks,
            least=min_ranks or ranks,
            origins=loaded.origins,
            resume=resume,
        )
    else:
        result = train(loaded.value, origins=loaded.origins, resume=resume)
    if result.stopped:
        raise SystemExit(exit_code(os.environ))
