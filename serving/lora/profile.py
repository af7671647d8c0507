"""What ``hecate profile`` writes and the app reads: how long a model's steps take on a machine."""

from __future__ import annotations

import json
from pathlib import Path

from hecate.config import Config, parse_config
from hecate.errors import ConfigError
from hecate.files import write_text
from serving.lora.step_model import StepModel


class Fits(Config):
    """Of each fit, the share of the measured variance that it explains (R2)."""

    decode: float
    prefill: float
    load: float
    read: float


class Profile(Config):
    """``model``, ``digest``, ``device``, ``dtype`` and ``threads``: what was measured."""

    model: str
    digest: str
    device: str
    dtype: str
    threads: int
    steps: StepModel
    r2: Fits


def write_profile(profile: Profile, path: Path) -> None:
    """Raises ``StorageError``."""
    write_text(path, json.dumps(profile.model_dump(mode="json"), indent=2) + "\n")


def read_profile(path: Path) -> Profile:
    """Raises ``ConfigError``."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is no profile",
            got=str(error),
            expected="a file that hecate profile wrote",
            fix=f"hecate profile MODEL --out {path}",
        ) from error
    return parse_config(Profile, values, str(path))
