"""What the training benchmark trains: models, process layouts, and the batches and weights on disk.

Batches and initial weights are written once and read by every contender, so that all see the same
rows in the same order and begin at the same point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import JsonValue
from safetensors.torch import load_file, save_file

from hecate.data import (
    DataConfig,
    TrainStream,
    load_corpus,
    open_tokens,
    prepare_tokenizer,
)
from hecate.data.config import TokenizerConfig
from hecate.data.packing import IGNORED, share_of
from hecate.data.progress import Progress
from hecate.models.build import ModelConfig, hf_config, initial_dense, initial_expert, meta_model
from hecate.models.families import find_moe_layers
from hecate.models.lora import LoraConfig


@dataclass(frozen=True)
class Workload:
    """A model from scratch and how much one step takes, over all ranks.

    ``rows``: of text, or of whole conversations of which the answers are learnt. ``lora``: adapters
    that alone train, where it is active.
    """

    name: str
    family: str
    sizes: Mapping[str, JsonValue]
    vocab_size: int
    sequence_tokens: int
    batch_sequences: int
    rows: Literal["text", "conversations"] = "text"
    lora: LoraConfig = LoraConfig()

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(family=self.family, sizes=dict(self.sizes))

    @property
    def tokens_per_step(self) -> int:
        return self.sequence_tokens * self.batch_sequences

    @property
    def num_layers(self) -> int:
        return int(str(self.sizes["num_hidden_layers"]))

    @property
    def num_experts(self) -> int:
        return int(str(self.sizes["num_experts"]))

    @property
    def top_k(self) -> int:
        return int(str(self.sizes["num_experts_per_tok"]))


@dataclass(frozen=True)
class Layout:
    """How many processes a contender has, and how many threads each of them."""

    name: str
    world_size: int
    threads: int


DEMO = Workload(
    name="demo",
    family="qwen3_moe",
    sizes={  # those of configs/train/demo.yaml
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 256,
        "norm_topk_prob": True,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    vocab_size=4096,
    sequence_tokens=256,
    batch_sequences=16,
)
QWEN3_MOE_108M = Workload(
    name="108m",
    family="qwen3_moe",
    sizes={
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 256,
        "norm_topk_prob": True,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    vocab_size=4096,
    sequence_tokens=512,
    batch_sequences=4,
)
SFT = replace(DEMO, name="sft", rows="conversations", sequence_tokens=512, batch_sequences=8)
LORA = replace(SFT, name="lora", lora=LoraConfig(rank=16, alpha=32))
WORKLOADS = {workload.name: workload for workload in (DEMO, QWEN3_MOE_108M, SFT, LORA)}

ONE_PROCESS = Layout("1p", world_size=1, threads=2)
TWO_RANKS = Layout("2p", world_size=2, threads=1)
LAYOUTS = {layout.name: layout for layout in (ONE_PROCESS, TWO_RANKS)}


def write_batches(
    workload: Workload,
    steps: int,
    *,
    data: DataConfig,
    seed: int,
    folder: Path,
    progress: Progress,
) -> Path:
    """The rows of ``steps`` steps, packed, as the trainer's own stream deals them.

    ``data`` says which text or conversations; sequences and vocabulary are the workload's.
    """
    config = data.model_copy(
        update={
            "sequence_tokens": workload.sequence_tokens,
            "tokenizer": TokenizerConfig(vocab_size=workload.vocab_size),
        }
    )
    corpus = load_corpus(config)
    tokenizer = prepare_tokenizer(
        config, corpus, folder / f"{workload.name}-tokenizer", progress=progress
    )
    tokens = open_tokens(corpus, tokenizer, config, progress=progress)
    stream = TrainStream(
        tokens.train,
        sequence_tokens=workload.sequence_tokens,
        batch_sequences=workload.batch_sequences,
        accumulation=1,
        seed=seed,
        rank=0,
        world_size=1,
        too_long=config.too_long,
    )
    taken = [stream.next_step()[0] for _ in range(steps)]
    path = folder / f"{workload.name}-batches.safetensors"
    save_file(
        {
            "input_ids": torch.stack([batch.input_ids_BS for batch in taken]),
            "labels": torch.stack([batch.labels_BS for batch in taken]),
            "position_ids": torch.stack([batch.position_ids_BS for batch in taken]),
        },
        path,
    )
    return path


@dataclass(frozen=True)
class Rows:
    """One rank's rows of a step, ``[B, S]`` int64, and how many labels the step has on all ranks.

    ``labels[b, s]`` is the token after ``input_ids[b, s]`` in its document, -100 where there is
    none; ``position_ids`` restart with each document.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    step_labels: int


def read_batches(path: Path, rank: int, world_size: int) -> tuple[Rows, ...]:
    """What ``rank`` of ``world_size`` gets of each step of ``write_batches``."""
    tensors = load_file(path)
    counts = (tensors["labels"] != IGNORED).sum(dim=(1, 2)).tolist()
    mine = share_of(tensors["labels"].shape[1], rank, world_size)
    part = {name: tensor[:, mine.start : mine.stop] for name, tensor in tensors.items()}
    return tuple(
        Rows(part["input_ids"][i], part["labels"][i], part["position_ids"][i], int(count))
        for i, count in enumerate(counts)
    )


def write_weights(workload: Workload, *, seed: int, folder: Path) -> Path:
    """The trainer's initial values under transformers' own names, persistent or not."""
    model = meta_model(hf_config(workload.model, vocab_size=workload.vocab_size))
    layers = find_moe_layers(model)
    values = dict(initial_dense(model, layers, seed))
    for layer in layers:
        experts = [initial_expert(model, layer, e, seed) for e in range(layer.num_experts)]
        for tensor in layer.layout.tensors:
            values[f"{layer.name}.{tensor.name}"] = torch.stack([e[tensor.name] for e in experts])
    path = folder / f"{workload.name}-weights.safetensors"
    save_file({name: value.contiguous() for name, value in values.items()}, path)
    return path
