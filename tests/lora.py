"""A small model of random weights in a folder, and what LoRA over it is compared with: PEFT."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from toy_models import toy_model
from transformers import AutoModelForCausalLM


def write_base(folder: Path, family: str, **sizes: object) -> Path:
    """The family's toy, all its weights random, as ``save_pretrained`` writes it."""
    toy_model(family, seed=1, **sizes).save_pretrained(folder)
    return folder


def load_peft(base: Path, adapter: Path, dtype: torch.dtype, *, trains: bool = False) -> Any:
    """Plain transformers with the adapter as PEFT loads it; nothing may be missing or unused."""
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).to(dtype)  # and not loaded in it: rotary frequencies are fp32 numbers
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of keys that are missing
        warnings.simplefilter("error", RuntimeWarning)  # of targets that match nothing
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers what it renamed
        return PeftModel.from_pretrained(model, adapter, is_trainable=trains)
