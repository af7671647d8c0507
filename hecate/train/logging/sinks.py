"""Every kind of sink by name, and those that a run asks for."""

from __future__ import annotations

from contextlib import ExitStack

from hecate.train.logging.config import LoggingConfig, SinkName
from hecate.train.logging.console import ConsoleSink
from hecate.train.logging.jsonl import JsonlSink
from hecate.train.logging.protocol import Run, Sink
from hecate.train.logging.wandb import WandbSink

SINKS: dict[SinkName, type[Sink]] = {
    "console": ConsoleSink,
    "jsonl": JsonlSink,
    "wandb": WandbSink,
}


def open_sinks(config: LoggingConfig, run: Run, *, rank: int) -> list[Sink]:
    """The sinks that ``config`` names, on rank 0; none on other ranks."""
    if rank != 0:
        return []
    sinks: list[Sink] = []
    with ExitStack() as undo:
        for name in config.sinks:
            if name == "wandb" and config.wandb_mode == "off":
                continue
            sinks.append(SINKS[name].open(config, run))
            undo.callback(sinks[-1].close)
        undo.pop_all()
    return sinks
