"""The model as plain transformers builds it, and which of its implementations is fastest here."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from hecate.bench.peers.peft_model import with_adapter
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
    """``AutoModelForCausalLM`` with the job's initial weights, in training mode, fp32.

    Where the job has adapters, PEFT's model around it.
    """
    model = plain_model(job, implementations)
    return model if job.adapted is None else with_adapter(model, job)


def plain_model(job: Job, implementations: Implementations) -> Any:
    """The model itself, all of whose parameters train."""
    with torch.device("meta"):  # every value is in the file: none needs to be drawn
        model = AutoModelForCausalLM.from_config(
            hf_config(job.workload.model, vocab_size=job.workload.vocab_size),
            dtype=torch.float32,
            attn_implementation=implementations.attention,
            experts_implementation=implementations.experts,
        )
    model.to_empty(device="cpu")
    model.tie_weights()
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

    by_experts = seconds_of(expert_candidates(job), with_experts, ctx, runs=job.trial_runs)
    experts = fastest(by_experts)
    model.set_experts_implementation(experts)
    by_attention = {start.attention: by_experts[experts]}
    by_attention |= seconds_of(("eager",), with_attention, ctx, runs=job.trial_runs)
    attention = fastest(by_attention)
    model.set_attn_implementation(attention)
    tried = f"{describe_trial(by_experts)}; {describe_trial(by_attention)}"
    return Implementations(attention, experts), model, tried


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


def seconds_of(
    candidates: Sequence[_Choice],
    prepare: Callable[[_Choice], Callable[[], None]],
    ctx: ParallelContext,
    *,
    runs: int,
) -> dict[_Choice, float]:
    """The best time of each candidate's prepared run on its slowest rank; infinite if it fails.

    One run of each goes before the ``runs`` timed ones.
    """
    seconds = {}
    for candidate in candidates:
        best = math.inf
        try:
            run = prepare(candidate)
            run()
            for _ in range(runs):
                started = time.perf_counter()
                run()
                best = min(best, time.perf_counter() - started)
        except (RuntimeError, TypeError, ValueError, AttributeError, ImportError):
            traceback.print_exc()
            best = math.inf
        slowest = torch.tensor(best, dtype=torch.float64)
        dist.all_reduce(slowest, dist.ReduceOp.MAX, group=ctx.groups.control)
        seconds[candidate] = float(slowest)
    return seconds


def fastest(seconds: Mapping[_Choice, float]) -> _Choice:
    """The candidate that took least; raises ``RuntimeError`` where all failed."""
    best = min(seconds, key=lambda candidate: seconds[candidate])
    if seconds[best] == math.inf:
        raise RuntimeError(f"none of {', '.join(map(str, seconds))} runs here")
    return best


def describe_trial(seconds: Mapping[_Choice, float]) -> str:
    return ", ".join(
        f"{candidate} {'fails' if took == math.inf else f'{took:.2f} s'}"
        for candidate, took in seconds.items()
    )
