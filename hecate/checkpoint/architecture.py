"""Which model a checkpoint holds, as its ``meta.json`` says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hecate.errors import CheckpointError


def saved_architecture(path: Path, meta: Mapping[str, Any]) -> PreTrainedConfig:
    """The transformers configuration in ``meta``, the meta of the checkpoint at ``path``.

    Raises ``CheckpointError`` where there is none that this transformers knows.
    """
    fields: dict[str, Any] = meta.get("hf_config") or {}
    model_type = str(fields.get("model_type", ""))
    if model_type not in CONFIG_MAPPING:
        raise CheckpointError(
            f"checkpoint {path} does not say which model it holds",
            got=f"model_type {model_type!r}" if model_type else "no hf_config in its meta.json",
            expected="the configuration of a transformers model",
            fix="use the versions of hecate and transformers that trained it",
        )
    config: PreTrainedConfig = CONFIG_MAPPING[model_type].from_dict(fields)
    return config
