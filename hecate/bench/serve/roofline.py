"""What this machine could do at best: its matmul rate and read bandwidth, and a model's needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

ROUNDS = 5
BLOCK_BYTES = 512 << 20


@dataclass(frozen=True)
class Machine:
    """The best of a few measurements, with all threads: multiply-adds count twice."""

    flops_per_s: float
    read_bytes_per_s: float


@dataclass(frozen=True)
class Needs:
    """Of one model. ``token_flops``: a token through all layers, attention to others aside;
    ``head_flops``: its logits; ``pair_flops``: a token's attention to one other.

    ``dense_bytes``: read by each step; ``expert_bytes``: of one expert, of which a token takes
    ``top_k`` of ``num_experts`` in each of ``moe_layers``; ``kv_bytes``: of one token.
    """

    token_flops: float
    head_flops: float
    pair_flops: float
    dense_bytes: float
    expert_bytes: float
    kv_bytes: float
    moe_layers: int
    num_experts: int
    top_k: int


def measure_machine(dtype: torch.dtype, threads: int) -> Machine:
    """Measure now, with ``threads``; what else runs slows it down."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        flops = 0.0
        for rows, inner, columns in ((256, 1024, 4096), (1024, 2048, 2048)):
            x, w = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
            work = 2.0 * rows * inner * columns
            flops = max(flops, work / _fastest(partial(torch.nn.functional.linear, x, w)))
        block = torch.ones(BLOCK_BYTES // 4)
        return Machine(flops, BLOCK_BYTES / _fastest(block.sum))
    finally:
        torch.set_num_threads(before)


def needs_of(config: Any, bytes_per_value: int) -> Needs:
    """Of a transformers configuration of Qwen3 or Qwen3-MoE."""
    D, H = config.hidden_size, config.head_dim
    N, M, Y = config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers
    attention = D * H * (2 * N + 2 * M)
    experts = getattr(config, "num_experts", 0)
    top_k = config.num_experts_per_tok if experts else 0
    expert = 3 * D * (config.moe_intermediate_size if experts else 0)
    feed_forward = D * experts if experts else 3 * D * config.intermediate_size
    dense = Y * (attention + feed_forward)
    head = D * config.vocab_size
    return Needs(
        token_flops=2.0 * (dense + Y * top_k * expert),
        head_flops=2.0 * head,
        pair_flops=4.0 * Y * N * H,
        dense_bytes=float(bytes_per_value * (dense + head)),
        expert_bytes=float(bytes_per_value * expert),
        kv_bytes=float(bytes_per_value * Y * 2 * M * H),
        moe_layers=Y if experts else 0,
        num_experts=experts,
        top_k=top_k,
    )


def least_seconds(
    needs: Needs, machine: Machine, *, batch: int, prompt_tokens: int, output_tokens: int
) -> float:
    """The roofline for ``batch`` requests at once: each step at the machine's matmul rate or its
    read bandwidth, whichever takes longer, and nothing else takes any time."""
    pairs = batch * prompt_tokens * (prompt_tokens + 1) / 2
    flops = batch * (prompt_tokens * needs.token_flops + needs.head_flops)
    flops += pairs * needs.pair_flops
    seconds = max(
        flops / machine.flops_per_s,
        _weight_bytes(needs, batch * prompt_tokens) / machine.read_bytes_per_s,
    )
    for made in range(1, output_tokens):
        context = prompt_tokens + made
        flops = batch * (needs.token_flops + needs.head_flops + context * needs.pair_flops)
        read = _weight_bytes(needs, batch) + batch * context * needs.kv_bytes
        seconds += max(flops / machine.flops_per_s, read / machine.read_bytes_per_s)
    return seconds


def _weight_bytes(needs: Needs, tokens: int) -> float:
    """What a step of so many tokens reads; of experts those that some token is expected to take."""
    if not needs.num_experts:
        return needs.dense_bytes
    untouched = (1 - needs.top_k / needs.num_experts) ** tokens
    touched = needs.num_experts * (1 - untouched)
    return needs.dense_bytes + needs.moe_layers * touched * needs.expert_bytes


def _fastest(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began_s)
    return min(seconds[1:])
