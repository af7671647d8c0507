"""The running average of weights in a checkpoint: under which keys it lies, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hecate.checkpoint.names import optimizer_key
from hecate.errors import CheckpointError

AVERAGE = "ema"
"""Its name beside the moments: it is kept, moved and re-sharded as they are."""


def average_key(key: str) -> str:
    """The key of the running average of the tensor saved under ``key``."""
    return optimizer_key(key, AVERAGE)


def average_weight(path: Path, meta: Mapping[str, Any]) -> float:
    """What the weights in the average add up to, which began from zeros: ``1 - decay ** steps``.

    Raises ``CheckpointError`` where the run of ``meta`` kept none.
    """
    decay = float(meta.get("config", {}).get("ema", {}).get("decay", 0.0))
    steps = int(meta.get("updates", meta.get("step", 0)))
    if not decay or not steps:
        raise CheckpointError(
            f"checkpoint {path} holds no average of weights",
            got=f"ema.decay {decay:g} after {steps} steps",
            expected="a run that kept one, of at least a step",
            fix="leave out --ema, or train with --set ema.decay=0.999",
        )
    return float(1.0 - decay**steps)
