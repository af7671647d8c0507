"""``hecate serve CONFIG|RUN|HF_FOLDER``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hecate.config import load_config, override_config
from hecate.train.generate import hub_folder_of
from serving.app import ServingConfig, serve_until_stopped, stopped_by_signals
from serving.engine.build import build_engine
from serving.engine.config import EngineConfig


def command(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG|RUN|HF_FOLDER",
            help="A YAML file, a run's folder or a Hugging Face folder.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=value", help="Change one value; may be repeated."),
    ] = None,
) -> None:
    """Serve a model behind an OpenAI-compatible API until Ctrl-C."""
    config = serving_config(target, overrides or [])
    print(f"loading {config.engine.model} as {config.engine.name}", flush=True)

    def ready(url: str) -> None:
        print(f"serving {config.engine.name} at {url}/v1, with a page at {url}/", flush=True)

    with stopped_by_signals() as stop:
        serve_until_stopped(config, build_engine, on_ready=ready, stop=stop)


def serving_config(target: Path, overrides: list[str]) -> ServingConfig:
    """What ``target`` asks for. A run is exported first, once, and served under its own name."""
    if target.suffix in (".yaml", ".yml"):
        config = load_config(ServingConfig, target, overrides).value
    else:
        folder = ServingConfig(engine=EngineConfig(model=str(target)))
        config = override_config(folder, overrides)
    given = Path(config.engine.model).expanduser()
    folder_of_model = hub_folder_of(given)
    engine = config.engine.model_copy(
        update={
            "model": str(folder_of_model),
            "name": config.engine.name or given.absolute().name,
        }
    )
    return config.model_copy(update={"engine": engine})
