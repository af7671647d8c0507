"""The memory of a run's fullest rank, from its configuration alone: nothing is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from hecate.errors import ModelError
from hecate.fssdp.config import ExpertsConfig
from hecate.models.build import hf_config, meta_model
from hecate.models.families import MoELayer, find_moe_layers
from hecate.models.loss import CHUNK_TOKENS
from hecate.models.routers import find_routers
from hecate.planner.owners import even_owners
from hecate.train.config import RunConfig
from hecate.train.dense import DTYPES, master_dtype
from hecate.train.footprint.parts import (
    DenseSizes,
    ExpertSizes,
    Footprint,
    LossShape,
    account,
    activation_bytes,
)
from hecate.train.footprint.traced import MicroBatchShape, traced_pass
from hecate.train.moments import MOMENTS

# What routing will do is not known before training. A policy that levels loads keeps its busiest
# rank near the mean, and copies few experts; the others leave it as uneven as routing is.
LEVELLED, UNEVEN = 1.1, 1.3
COPIED_SHARE = 0.25  # of as many experts as a rank owns
_UNLEVELLED = ("expert_parallel", "swapping")

# Freed memory that later blocks do not fit into, as a share of activations: glibc cuts a block to
# its size again with each use, and row counts change with the routing. Measured here; CUDA's
# allocator is asked for its peak of what is in use, which has none.
HEAP_SHARE = 0.45


def estimate(
    config: RunConfig,
    *,
    world_size: int,
    vocab_size: int,
    device_type: str,
    process_bytes: int,
) -> Footprint:
    """What the fullest of ``world_size`` ranks holds at most, in the middle of a training step.

    ``process_bytes``: what it holds before the model. On CUDA the figure is the device's, where a
    process and the copies of a checkpoint do not count. Raises ``ConfigError`` and ``ModelError``
    as building the model does, and ``ModelError`` for what is not accounted for.
    """
    _require_accounted(config)
    model = meta_model(
        hf_config(config.model, vocab_size=vocab_size), attention=_attention(config, device_type)
    )
    layers = find_moe_layers(model)
    compute_dtype = DTYPES[config.train.dtype]
    dtype = master_dtype(compute_dtype)
    on_cuda = device_type == "cuda"
    accumulates = config.train.accumulation > 1
    muon = config.optimizer.kind == "muon"
    experts = _expert_sizes(config.experts, layers, world_size, accumulates=accumulates, muon=muon)
    dense = _dense_sizes(model, layers, world_size, sharded=compute_dtype != dtype, muon=muon)
    if config.ema.decay:
        experts = replace(experts, moments=experts.moments + 1)
        dense = replace(dense, moments=dense.moments + dense.total)
    copies_Y = copies_of_layers(config.experts, layers, world_size)
    text = model.config.get_text_config()
    sequences = -(-config.train.batch_sequences // config.train.accumulation // world_size)
    tokens = sequences * config.data.sequence_tokens
    slots = tokens * int(getattr(text, "num_experts_per_tok", None) or 1)
    owned_Y = [-(-layer.num_experts // world_size) for layer in layers]
    trunk = traced_pass(
        model,
        layers,
        MicroBatchShape(
            sequences=sequences,
            sequence_tokens=config.data.sequence_tokens,
            rows_Y=(math.ceil(slots * busiest_over_mean(config.experts, world_size)),)
            * len(layers),
            held_Y=tuple(map(sum, zip(owned_Y, copies_Y, strict=True))),
            crosses=world_size > 1,
        ),
        device=torch.device(device_type),
        dtype=dtype,
        compute_dtype=compute_dtype,
        checkpointing=config.train.activation_checkpointing,
        router_losses=bool(config.router.balance_loss or config.router.z_loss),
    )
    loss = LossShape(
        tokens=tokens,
        width=text.hidden_size,
        vocabulary=text.vocab_size,
        itemsize=compute_dtype.itemsize,
        chunk_tokens=CHUNK_TOKENS,
        fused=not getattr(text, "final_logit_softcapping", None),
    )
    return account(
        experts,
        dense,
        master_itemsize=dtype.itemsize,
        compute_itemsize=compute_dtype.itemsize,
        accumulates=accumulates,
        activations=activation_bytes(trunk, loss),
        process=0 if on_cuda else process_bytes,
        checkpoint_copy=config.checkpoint.asynchronous and not on_cuda,
        allocator_share=0.0 if on_cuda else HEAP_SHARE,
    )


def _require_accounted(config: RunConfig) -> None:
    others = []
    if config.lora.active:
        others.append("lora.rank, which trains adapters alone")
    if config.dense.backend != "fsdp2":
        others.append(f"dense.backend {config.dense.backend}, which shards in its own way")
    if others:
        raise ModelError(
            "the memory of this run is not accounted for",
            got=" and ".join(others),
            expected="every weight trained, and dense.backend fsdp2",
            fix="train a few steps: hecate train says at its end what its ranks took",
        )


def busiest_over_mean(config: ExpertsConfig, world_size: int) -> float:
    """Slots that the busiest rank computes, over the mean."""
    if world_size == 1:
        return 1.0
    return UNEVEN if config.policy in _UNLEVELLED else LEVELLED


def copies_of_layers(
    config: ExpertsConfig, layers: Iterable[MoELayer], world_size: int
) -> tuple[int, ...]:
    """How many experts that others own the fullest rank is taken to hold of each layer."""
    copies = []
    for layer in layers:
        owned = -(-layer.num_experts // world_size)
        others = layer.num_experts - owned
        if config.policy in _UNLEVELLED or world_size == 1:
            copies.append(0)
        elif config.policy == "fsdp":
            copies.append(others)
        else:
            copies.append(min(others, math.ceil(owned * COPIED_SHARE)))
    return tuple(copies)


def _attention(config: RunConfig, device_type: str) -> Literal["auto", "packed", "sdpa", "eager"]:
    # the kernels of GPUs keep what the packed path keeps, and on the meta device they do not run
    return "auto" if device_type == "cuda" else config.model.attention


def _expert_sizes(
    config: ExpertsConfig,
    layers: tuple[MoELayer, ...],
    world_size: int,
    *,
    accumulates: bool,
    muon: bool,
) -> ExpertSizes:
    owners = even_owners([layer.num_experts for layer in layers], world_size)
    owned = [
        sum(
            len(own.chunks_on(rank)) * layer.layout.numel
            for own, layer in zip(owners, layers, strict=True)
        )
        for rank in range(world_size)
    ]
    copied = [
        count * layer.layout.numel
        for count, layer in zip(copies_of_layers(config, layers, world_size), layers, strict=True)
    ]
    return ExpertSizes(
        owned=max(owned),
        copied=max(copied) if config.rematerialize is True else sum(copied),
        copied_grads=sum(copied) if accumulates else max(copied),
        moments=1 if muon else len(MOMENTS),
    )


def _dense_sizes(
    model: PreTrainedModel,
    layers: tuple[MoELayer, ...],
    world_size: int,
    *,
    sharded: bool,
    muon: bool,
) -> DenseSizes:
    experts = {id(p) for layer in layers for p in model.get_submodule(layer.name).parameters()}
    blocks = set(model._no_split_modules or ())
    groups = [_numel(m, experts) for m in model.modules() if type(m).__name__ in blocks]
    total = _numel(model, experts)
    return DenseSizes(
        total=total,
        largest=max(total - sum(groups), *groups, 0),
        shards=world_size,
        gathered=world_size > 1 or sharded,
        moments=total * len(MOMENTS) - (_numel_by_muon(model, layers) if muon else 0),
    )


def _numel(module: nn.Module, experts: set[int]) -> int:
    return sum(p.numel() for p in module.parameters() if id(p) not in experts)


def _numel_by_muon(model: PreTrainedModel, layers: tuple[MoELayer, ...]) -> int:
    """Elements of the dense matrices that Muon keeps one moment of."""
    heads = [model.get_input_embeddings(), model.get_output_embeddings()]
    found = find_routers(model, layers)
    routers = [router.module for router in found if router.module is not router.block]
    others = {id(p) for m in (*heads, *routers) if m is not None for p in m.parameters()}
    experts = {id(p) for layer in layers for p in model.get_submodule(layer.name).parameters()}
    return sum(
        p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in others | experts
    )
