"""Toy models in folders, as a user would serve them, and what their engines answer."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from patience import PATIENCE_S
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from toy_models import SIZES, toy_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from serving.engine.build import build_engine
from serving.engine.config import EngineConfig, MemoryConfig
from serving.engine.loading import adopt
from serving.engine.protocol import Engine
from serving.lora.config import LoraConfig
from serving.request import Delta, Finish, Request, Sampling, TokenLogprobs, Usage
from serving.scheduling.config import SchedulingConfig

T = TypeVar("T")

VOCABULARY = 300

_DENSE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}

OTHERS: dict[str, dict[str, object]] = {
    "qwen3": {},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 16},  # soft caps
    "gemma3_text": {"sliding_window": 8},
    "deepseek_v2": {  # keys of 24, values of 16
        "num_key_value_heads": 4,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "topk_method": "greedy",
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "head_dim": 8,
    },
}

SERVED = ("mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss", *OTHERS)


def served_model(family: str) -> PreTrainedModel:
    """A toy with random weights and a vocabulary that a byte tokenizer fits."""
    if family in SIZES:
        more = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
        return toy_model(
            family,
            vocab_size=VOCABULARY,
            max_position_embeddings=128,
            **(more if family == "gpt_oss" else {}),
        )
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**_DENSE, **OTHERS[family]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.randn(tensor.shape) * 0.1 + ("norm" in name))
    return model.eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few merges, so that characters come in pieces and words whole."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat and the dog saw the other cat"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def save_served(folder: Path, family: str) -> PreTrainedModel:
    """Write a toy and its tokenizer to ``folder``; the model, as transformers has it."""
    model = served_model(family)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def engine_config(
    folder: Path,
    *,
    blocks: int = 64,
    block_tokens: int = 4,
    prefix: str = "radix",
    token_bytes: int = 1024,
    max_waiting: int = 64,
    lora: dict[str, object] | None = None,
    kernels: str = "auto",
    swap_blocks: int = 0,
    host_blocks: int = 0,
    **scheduling: object,
) -> EngineConfig:
    """An engine of ``blocks`` blocks, if a token's keys and values take ``token_bytes``; with
    ``swap_blocks``, everything that is preempted goes there as long as there is room, with
    ``host_blocks`` what the prefix cache gives up."""
    block_gib = block_tokens * token_bytes / 2**30
    return EngineConfig(
        model=str(folder),
        name="toy",
        device="cpu",
        dtype="float32",
        threads=1,
        max_waiting=max_waiting,
        kernels=kernels,  # type: ignore[arg-type]
        lora=LoraConfig.model_validate({"max_rank": 16, **(lora or {})}),
        memory=MemoryConfig.model_validate(
            {
                "kv_gib": (blocks + 0.5) * block_gib,
                "block_tokens": block_tokens,
                "prefix": prefix,
                "swap_gib": (swap_blocks + 0.5) * block_gib if swap_blocks else 0.0,
                "swap": "always" if swap_blocks else "cheaper",
                "host_prefix_gib": (host_blocks + 0.5) * block_gib if host_blocks else 0.0,
            }
        ),
        scheduling=SchedulingConfig.model_validate(scheduling),
    )


def greedy(max_tokens: int = 12, **more: object) -> Sampling:
    return Sampling(max_tokens=max_tokens, **{"temperature": 0.0, "ignore_eos": True, **more})  # type: ignore[arg-type]


@dataclass
class Answer:
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: Finish | None = None
    usage: Usage | None = None
    error: str = ""

    def add(self, delta: Delta) -> None:
        assert self.finish is None, "a delta after the last one"
        self.tokens += delta.tokens
        self.text += delta.text
        self.texts.append(delta.text)
        assert not delta.prompt_logprobs or len(self.texts) == 1, "they come first, and once"
        self.prompt_logprobs += delta.prompt_logprobs
        self.logprobs += delta.logprobs
        self.finish, self.usage, self.error = delta.finish, delta.usage, delta.error


def token_bytes(model: PreTrainedModel) -> int:
    """What all layers of a model in float32 keep of a token."""
    before = model.config._attn_implementation
    layers = adopt(model)
    model.set_attn_implementation(before)
    return 4 * sum(layer.numel for layer in layers)


Answers = dict[tuple[str, int], Answer]


async def collect(engine: Engine, answers: Answers, count: int) -> None:
    """Read ``engine`` until ``count`` answers have ended."""
    ended = sum(answer.finish is not None for answer in answers.values())
    if ended >= count:
        return
    async for deltas in engine.steps():
        for delta in deltas:
            answers[delta.request_id, delta.index].add(delta)
            ended += delta.finish is not None
        if ended >= count:
            return


async def answer_all(engine: Engine, requests: Sequence[Request]) -> Answers:
    answers: Answers = defaultdict(Answer)
    for request in requests:
        await engine.submit(request)
    await collect(engine, answers, sum(request.n for request in requests))
    return answers


def with_engine(config: EngineConfig, use: Callable[[Engine], Awaitable[T]]) -> T:
    """What ``use`` makes of an engine that is started for it and closed after it."""

    async def main() -> T:
        engine = build_engine(config)
        await engine.start()
        try:
            return await asyncio.wait_for(use(engine), PATIENCE_S)
        finally:
            await engine.close()

    return asyncio.run(main())


def served(config: EngineConfig, *requests: Request) -> Answers:
    return with_engine(config, lambda engine: answer_all(engine, requests))
