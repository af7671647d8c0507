"""Every kind of sink by name, and those that a run asks for.

The boundary file of sinks: it alone imports one by its name, and only where a run asks for it.
Wandb and TensorBoard take a second and tens of MiB, and may not be installed.
"""

from __future__ import annotations

import importlib
import logging
from contextlib import ExitStack
from typing import cast

from hecate.logging.config import LoggingConfig, SinkName
from hecate.logging.lasting import Lasting
from hecate.logging.protocol import OpenSink, Run, Sink

_LOG = logging.getLogger(__name__)

SINKS: dict[SinkName, str] = {
    "console": "hecate.logging.console:ConsoleSink",
    "jsonl": "hecate.logging.jsonl:JsonlSink",
    "wandb": "hecate.logging.wandb:WandbSink",
    "tensorboard": "hecate.logging.tensorboard:TensorBoardSink",
}
PACKAGES: dict[SinkName, str] = {"wandb": "wandb", "tensorboard": "tensorboard"}
"""What has to be installed for a sink, beside what Hecate needs."""


def open_sinks(config: LoggingConfig, run: Run, *, rank: int) -> list[OpenSink]:
    """The sinks that ``config`` names, on rank 0; none on other ranks.

    One whose package is missing is left out with a warning. Whatever a sink cannot write later is
    warned of once, and the run goes on; what cannot be begun raises ``StorageError``.
    """
    if rank != 0:
        return []
    sinks: list[OpenSink] = []
    with ExitStack() as undo:
        for name in config.sinks:
            if name == "wandb" and config.wandb_mode == "off":
                continue
            try:
                kind = sink_class(name)
            except ModuleNotFoundError as missing:
                package = PACKAGES.get(name, "")
                if (missing.name or "").partition(".")[0] != package:
                    raise
                _LOG.warning(
                    "%s is not installed, and the run is not logged there (pip install %s, or do "
                    "not ask for it)",
                    package,
                    package,
                )
                continue
            sinks.append(Lasting(name, kind.open(config, run)))
            undo.callback(sinks[-1].close)
        undo.pop_all()
    return sinks


def sink_class(name: SinkName) -> type[Sink]:
    """Raises ``ModuleNotFoundError`` where its package is not installed."""
    module, _, kind = SINKS[name].partition(":")
    return cast(type[Sink], getattr(importlib.import_module(module), kind))
