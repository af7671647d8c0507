"""Whole tokenizers and models of local Hugging Face folders, as transformers reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.modeling_utils import PreTrainedModel

from hecate.errors import ModelError, TokenizerError


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """What transformers makes of ``folder``, nothing fetched. Raises ``TokenizerError``."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the Rust library raises plain Exception
        raise TokenizerError(
            f"{folder} holds no tokenizer that transformers can load",
            got=(str(error).strip().splitlines() or [type(error).__name__])[0],
            expected="tokenizer.json and tokenizer_config.json, as save_pretrained writes them",
            fix="save the tokenizer there again",
        ) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def model_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model. Raises ``TokenizerError`` where there is none."""
    cause: Exception | None = None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        if len(tokenizer) > len(tokenizer.all_special_ids):
            return tokenizer
        got = "special tokens only"  # what transformers makes up where there are no files
    except (OSError, ValueError, KeyError, TypeError) as error:
        cause, got = error, _first_line(error)
    raise TokenizerError(
        f"there is no usable tokenizer in {folder}",
        got=got,
        expected="tokenizer.json or the files of the model's tokenizer class",
        fix="copy the tokenizer that the model was trained with into the folder",
    ) from cause


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
