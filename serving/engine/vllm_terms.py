"""What Hecate asks of an engine, in vLLM's words, and what comes back, in ours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm.config import StructuredOutputsConfig
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from hecate.errors import ConfigError
from hecate.models.lora.peft_format import CONFIG_FILE, WEIGHTS_FILE
from serving.engine.config import EngineConfig, MemoryConfig
from serving.errors import InvalidRequest
from serving.lora.facts import AdapterFacts
from serving.lora.peft_folder import digest_of
from serving.request import NO_LOGPROBS, Request, TokenLogprobs
from serving.scheduling.config import SchedulingConfig


def engine_arguments(config: EngineConfig) -> dict[str, Any]:
    """``config`` in vLLM's words. Raises ``ConfigError`` for what vLLM decides by itself."""
    memory, scheduling = MemoryConfig(), SchedulingConfig()
    for name, value, default in (
        ("memory.block_tokens", config.memory.block_tokens, memory.block_tokens),
        ("memory.swap_gib", config.memory.swap_gib, memory.swap_gib),
        (
            "scheduling.max_scored_tokens",
            config.scheduling.max_scored_tokens,
            scheduling.max_scored_tokens,
        ),
        ("scheduling.watermark", config.scheduling.watermark, scheduling.watermark),
        ("scheduling.overtaking", config.scheduling.overtaking, scheduling.overtaking),
        ("scheduling.quantum_steps", config.scheduling.quantum_steps, scheduling.quantum_steps),
        ("lora.folder", config.lora.folder, ""),
    ):
        if value != default:
            raise ConfigError(f"{name} has no effect with engine.kind vllm", fix="leave it out")
    arguments: dict[str, Any] = {
        "model": str(Path(config.model).expanduser()),
        "dtype": config.dtype,
        "max_num_seqs": config.scheduling.max_sequences,
        "enable_prefix_caching": config.memory.prefix != "none",
        "kv_cache_memory_bytes": int(config.memory.kv_gib * 2**30),
        "scheduling_policy": "priority",
        "disable_log_stats": True,
        # A model may else write blanks where a schema lets it, until it has no tokens left.
        "structured_outputs_config": StructuredOutputsConfig(
            backend="guidance", disable_any_whitespace=True
        ),
        "enforce_eager": config.kernels == "off",  # without vLLM's compiler
    }
    if config.lora.slots:
        arguments |= {
            "enable_lora": True,
            "max_loras": config.lora.slots,
            "max_lora_rank": config.lora.max_rank,
        }
    if config.max_tokens:
        arguments["max_model_len"] = config.max_tokens
    if config.scheduling.max_batch_tokens != scheduling.max_batch_tokens:
        arguments["max_num_batched_tokens"] = config.scheduling.max_batch_tokens
    return arguments


def adapter_facts(name: str, folder: Path) -> AdapterFacts:
    """Of an adapter in PEFT's format. Raises ``InvalidAdapter`` for a folder without one."""
    digest = digest_of(folder)
    settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    targets = settings.get("target_modules") or ()
    return AdapterFacts(
        name,
        digest,
        str(folder),
        rank=int(settings.get("r") or 0),
        num_bytes=(folder / WEIGHTS_FILE).stat().st_size,
        targets=(targets,) if isinstance(targets, str) else tuple(sorted(targets)),
    )


def environment(config: EngineConfig) -> dict[str, str]:
    """What vLLM reads from the environment: which cores its threads are bound to."""
    cores = sorted(os.sched_getaffinity(0))
    used = cores[: config.threads or len(cores)]
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, used)),
        "VLLM_NO_USAGE_STATS": "1",
    }


def sampling_params(request: Request) -> Any:
    """``request`` in vLLM's words, streamed."""
    s = request.sampling
    grammar = None
    if s.grammar is not None:
        if s.grammar.before or s.grammar.after:
            raise InvalidRequest(
                "this engine leaves it to the model whether it calls a tool",
                expected='"auto" or "none"',
                param="tool_choice",
            )
        grammar = (
            StructuredOutputsParams(json=s.grammar.schema)
            if s.grammar.schema
            else StructuredOutputsParams(json_object=True)
        )
    return SamplingParams(
        n=request.n,
        max_tokens=s.max_tokens,
        temperature=s.temperature,
        top_p=s.top_p,
        top_k=s.top_k,
        min_p=s.min_p,
        presence_penalty=s.presence_penalty,
        frequency_penalty=s.frequency_penalty,
        repetition_penalty=s.repetition_penalty,
        logit_bias=dict(s.logit_bias) or None,
        seed=s.seed,
        stop=list(s.stop) or None,
        stop_token_ids=list(s.stop_token_ids) or None,
        ignore_eos=s.ignore_eos,
        min_tokens=s.min_tokens,
        logprobs=None if s.logprobs == NO_LOGPROBS else s.logprobs,
        prompt_logprobs=None if s.prompt_logprobs == NO_LOGPROBS else s.prompt_logprobs,
        structured_outputs=grammar,
        output_kind=RequestOutputKind.DELTA,
    )


def logprobs_of(answer: Any, count: int) -> tuple[TokenLogprobs, ...]:
    if answer.logprobs is None:
        return ()
    pairs = zip(answer.token_ids, answer.logprobs, strict=True)
    return tuple(_ranked(token, ranked, count) for token, ranked in pairs)


def prompt_logprobs_of(output: Any, request: Request) -> tuple[TokenLogprobs, ...]:
    """Of all tokens of the prompt but the first, of which vLLM says nothing either."""
    if not output.prompt_logprobs:
        return ()
    pairs = zip(request.prompt[1:], output.prompt_logprobs[1:], strict=True)
    count = request.sampling.prompt_logprobs
    return tuple(_ranked(token, ranked, count) for token, ranked in pairs)


def _ranked(token: int, ranked: Mapping[int, Any], count: int) -> TokenLogprobs:
    # The token itself comes too where it is not among the likeliest; ranks begin at 1.
    top = sorted((each.rank, other, each.logprob) for other, each in ranked.items())
    likeliest = tuple((other, logprob) for rank, other, logprob in top if rank <= count)
    return TokenLogprobs(token, ranked[token].logprob, likeliest)


def token_ids(eos: int | Sequence[int] | None) -> tuple[int, ...]:
    if eos is None:
        return ()
    return (eos,) if isinstance(eos, int) else tuple(eos)
