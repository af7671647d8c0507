"""Models to serve: random weights in a folder, with a tokenizer that turns any token into text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from hecate.bench.workloads import DEMO, QWEN3_MOE_108M

END = "<|end|>"


@dataclass(frozen=True)
class ServedModel:
    """A model by its sizes; speed does not depend on what its weights are."""

    name: str
    title: str
    family: str
    sizes: Mapping[str, JsonValue]
    vocab_size: int


MODELS = {
    model.name: model
    for model in (
        ServedModel("demo", "9M Qwen3-MoE", DEMO.family, DEMO.sizes, DEMO.vocab_size),
        ServedModel(
            "108m",
            "108M Qwen3-MoE",
            QWEN3_MOE_108M.family,
            QWEN3_MOE_108M.sizes,
            QWEN3_MOE_108M.vocab_size,
        ),
        ServedModel(
            "86m",
            "86M Qwen3, dense",
            "qwen3",
            {
                "hidden_size": 768,
                "intermediate_size": 2304,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "num_key_value_heads": 4,
                "head_dim": 64,
                "max_position_embeddings": 1024,
                "tie_word_embeddings": True,
            },
            4096,
        ),
    )
}


def write_model(model: ServedModel, folder: Path, *, context: int, dtype: torch.dtype) -> Path:
    """Save ``model`` with random weights, for ``context`` tokens, and its tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model.family,
        **{
            **model.sizes,
            "vocab_size": model.vocab_size,
            "max_position_embeddings": context,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        },
    )
    path = folder / model.name
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(path)
    tokenizer_of(model.vocab_size).save_pretrained(path)
    return path


def tokenizer_of(vocab_size: int) -> PreTrainedTokenizerFast:
    """Bytes, and words that nothing merges into, so that every token has a text of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"word{number}" for number in range(vocab_size - len(alphabet) - 1)]
    vocabulary = {token: number for number, token in enumerate([END, *alphabet, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END
    )
