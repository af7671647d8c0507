"""Whole models of local Hugging Face folders, as transformers reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel

from hecate.errors import ModelError


def causal_model(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The causal language model in ``folder`` with all its weights, on the CPU.

    ``dtype``: None takes the folder's. Weights are mapped from their safetensors files. Raises
    ``ModelError`` for a folder that transformers cannot load, and where weights are missing.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or "auto", local_files_only=True, output_loading_info=True
        )
        model, info = loaded
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"transformers cannot load the model in {folder}",
            got=_first_line(error),
            expected="a causal language model with all its weights",
            fix="export the run again, or copy the folder whole",
        ) from error
    if info["missing_keys"]:  # transformers would go on with random weights
        raise ModelError(
            f"the model in {folder} lacks weights",
            got=f"{len(info['missing_keys'])} missing, such as {min(info['missing_keys'])}",
            expected="a value for every parameter",
            fix="export the run again, or copy the folder whole",
        )
    assert isinstance(model, PreTrainedModel)
    return model


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:300]
