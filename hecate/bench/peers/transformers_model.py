"""The model as plain transformers builds it, and which of its implementations is fastest here."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from hecate.bench.peers.protocol import Implementations, Job
from hecate.bench.workloads import Rows, Workload, read_batches
from hecate.mesh import ParallelContext
from hecate.models.build import hf_config
from hecate.train.optim import OptimizerConfig

# batched_mm copies an expert's weights for each (token, choice) pair: out of the question in
# training unless a layer's copies are small.
BATCHED_MM_MOST_BYTES = 256 << 20

_Choice = TypeVar("_Choice")


def build_model(job: Job, implementations: Implementations) -> Any:
    """``AutoModelForCausalLM`` with the job's initial weights, in training mode, fp32."""
    model = AutoModelForCausalLM.from_config(
        hf_config(job.workload.model, vocab_size=job.workload.vocab_size),
        dtype=torch.float32,
        attn_implementation=implementations.attention,
        experts_implementation=implementations.experts,
    )
    model.config.use_cache = False
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, value in load_file(job.weights).items():
            own.pop(name).copy_(value)
    assert not own, f"no initial value for {sorted(own)}"
    return model.train()


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of AdamW: matrices and stacked experts decay, vectors do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {
            "name": "matrices",
            "params": [p for p in parameters if p.ndim >= 2],
            "weight_decay": weight_decay,
        },
        {
            "name": "vectors",
            "params": [p for p in parameters if p.ndim < 2],
            "weight_decay": 0.0,
        },
    ]


def fused_adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def mean_loss(model: Any, rows: Rows, job: Job, ranks: int) -> torch.Tensor:
    """This rank's summed loss over the step's mean number of labels a rank.

    Averaged over ranks, as data parallelism averages gradients, it is the mean over all labels.
    """
    with autocast(job):
        loss: torch.Tensor = model(
            input_ids=rows.input_ids,
            position_ids=rows.position_ids,
            labels=rows.labels,
            shift_labels=rows.labels,
            num_items_in_batch=rows.step_labels / ranks,
        ).loss
    return loss


def autocast(job: Job) -> AbstractContextManager[Any]:
    """bf16 for the forward pass where the job asks for it; parameters stay fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=job.dtype == "bfloat16")


def fastest_implementations(job: Job, ctx: ParallelContext) -> tuple[Implementations, Any, str]:
    """The best experts implementation, then the best attention with it; and the model, as it was.

    Measured by forward and backward passes over the job's own rows. The text says what was tried.
    """
    start = Implementations("sdpa", "eager")
    model = build_model(job, start)
    rows = read_batches(job.batches, ctx.rank, ctx.world_size)[0]

    def passes() -> None:
        mean_loss(model, rows, job, ctx.world_size).backward()
        model.zero_grad()

    def with_experts(name: str) -> Callable[[], None]:
        model.set_experts_implementation(name)
        return passes

    def with_attention(name: str) -> Callable[[], None]:
        model.set_attn_implementation(name)
        return passes

    experts, experts_text = fastest(expert_candidates(job), with_experts, ctx)
    model.set_experts_implementation(experts)
    attention, attention_text = fastest(("sdpa", "eager"), with_attention, ctx)
    model.set_attn_implementation(attention)
    return Implementations(attention, experts), model, f"{experts_text}; {attention_text}"


def expert_candidates(job: Job) -> tuple[str, ...]:
    """The experts implementations of transformers that can train this workload."""
    rows = job.workload.batch_sequences // job.layout.world_size
    gathered = batched_mm_bytes(job.workload, rows * job.workload.sequence_tokens)
    return ("eager", "grouped_mm", *(("batched_mm",) if gathered <= BATCHED_MM_MOST_BYTES else ()))


def batched_mm_bytes(workload: Workload, tokens: int) -> int:
    """What ``batched_mm`` gathers for one layer's first projection, in fp32."""
    sizes = hf_config(workload.model, vocab_size=workload.vocab_size)
    matrix = 2 * sizes.moe_intermediate_size * sizes.hidden_size
    return int(tokens * sizes.num_experts_per_tok * matrix * 4)


def fastest(
    candidates: Sequence[_Choice],
    prepare: Callable[[_Choice], Callable[[], None]],
    ctx: ParallelContext,
    *,
    repeats: int = 2,
) -> tuple[_Choice, str]:
    """The candidate whose prepared run is fastest on the slowest rank, and each one's seconds.

    One run of each goes before the timed ones. A candidate that fails on any rank is out.
    """
    seconds = []
    for candidate in candidates:
        try:
            run = prepare(candidate)
            run()
            timed = []
            for _ in range(repeats):
                started = time.perf_counter()
                run()
                timed.append(time.perf_counter() - started)
            best = min(timed)
        except (RuntimeError, TypeError, ValueError, AttributeError, ImportError):
            traceback.print_exc()
            best = math.inf
        slowest = torch.tensor(best, dtype=torch.float64)
        dist.all_reduce(slowest, dist.ReduceOp.MAX, group=ctx.groups.control)
        seconds.append(float(slowest))
    if min(seconds) == math.inf:
        raise RuntimeError(f"none of {', '.join(map(str, candidates))} runs here")
    text = ", ".join(
        f"{candidate} {'fails' if took == math.inf else f'{took:.2f} s'}"
        for candidate, took in zip(candidates, seconds, strict=True)
    )
    return candidates[seconds.index(min(seconds))], text
