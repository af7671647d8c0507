"""How a run reports its metrics."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hecate.config import Config

SinkName = Literal["console", "jsonl", "wandb", "tensorboard"]


class LoggingConfig(Config):
    """Where metrics go and how often.

    ``tensorboard`` among ``sinks`` writes TensorBoard's files to the run folder.

    ``wandb_mode`` ``online`` uploads with the credentials that ``wandb login`` left; without any it
    says so once and keeps the run offline, in the run folder, where ``wandb sync`` finds it.
    ``off`` writes nothing for Weights & Biases. ``loads``: keep the routers' loads of every step in
    the run's folder, for ``hecate plan``.
    """

    sinks: tuple[SinkName, ...] = ("console", "jsonl", "wandb")
    every: int = Field(default=10, ge=1)
    wandb_mode: Literal["offline", "online", "off"] = "offline"
    wandb_project: str = "hecate"
    loads: bool = True
