"""A training loop of the user's own over N ranks equals one process of plain transformers.

Nothing of our trainer is here: the model is transformers', the dense part is the user's to average,
shard or replicate, and the reference trains the model as transformers built it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from reference import WideFloats
from scripted import Restless
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from toy_models import toy_config
from transformers import AutoModelForCausalLM

from hecate.fssdp import RouterConfig, ShardedExperts, shard_experts
from hecate.fssdp.apply import even_placements
from hecate.mesh import ParallelContext
from hecate.planner.policies import Policy

STEPS = 5
ROWS = 6  # of a micro-batch, over all ranks
ROW_TOKENS = 16
CLIP_NORM = 0.5


@dataclass(frozen=True)
class Case:
    """``dense``: who averages its gradients; ``policy``: a name, or the one that never rests."""

    family: str = "qwen3_moe"
    dense: str = "fsdp2"
    policy: str = "restless"
    accumulation: int = 1
    checkpointing: bool = False
    compiled: str = ""
    balance_loss: float = 0.0
    dtype: torch.dtype = torch.float64
    bf16: bool = False


@dataclass
class Outcome:
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)


def build(case: Case) -> nn.Module:
    torch.manual_seed(0)
    config = toy_config(case.family)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )
    return model.to(case.dtype).train()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)


def micro_batches(case: Case, step: int) -> list[torch.Tensor]:
    """Token ids ``[ROWS, ROW_TOKENS]`` of a step, the same on every rank."""
    generator = torch.Generator().manual_seed(step)
    shape = (ROWS, ROW_TOKENS)
    return [torch.randint(128, shape, generator=generator) for _ in range(case.accumulation)]


def mean_loss(model: Any, ids_BS: torch.Tensor) -> torch.Tensor:
    return cross_entropy(model(input_ids=ids_BS, use_cache=False).logits, ids_BS)


def cross_entropy(logits_BSV: torch.Tensor, ids_BS: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), ids_BS[:, 1:].flatten())


def loss_and_balance(model: Any, ids_BS: torch.Tensor, weight: float) -> torch.Tensor:
    """The cross-entropy, and the balance loss written out (2101.03961 eq. 4-6) for each layer."""
    output = model(input_ids=ids_BS, use_cache=False, output_router_logits=True)
    loss = cross_entropy(output.logits, ids_BS)
    for logits_TE in output.router_logits:
        num_experts = logits_TE.shape[-1]
        probability_TE = logits_TE.softmax(-1)
        chosen_TK = probability_TE.topk(model.config.num_experts_per_tok).indices
        share_E = F.one_hot(chosen_TK.flatten(), num_experts).to(logits_TE.dtype).mean(0)
        loss = loss + weight * num_experts * (share_E * probability_TE.mean(0)).sum()
    return loss


def train_alone(case: Case) -> Outcome:
    """The reference: the whole batch, no Hecate."""
    outcome = Outcome()
    with numerics(case):
        model = build(case)
        optimizer = adamw(model)
        for step in range(STEPS):
            total = 0.0
            for ids in micro_batches(case, step):
                if case.balance_loss:
                    loss = loss_and_balance(model, ids, case.balance_loss)
                else:
                    loss = mean_loss(model, ids)
                loss = loss / case.accumulation
                loss.backward()
                total += float(loss.detach())
            norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()
            outcome.losses.append(total)
            outcome.norms.append(float(norm))
    outcome.parameters = {name: p.detach() for name, p in model.named_parameters()}
    return outcome


def numerics(case: Case) -> Any:
    """fp64 all through, but where a compiler traces: it does not see through the mode."""
    wide = case.dtype == torch.float64 and not case.compiled
    return WideFloats() if wide else contextlib.nullcontext()


def train_on_rank(ctx: ParallelContext, case: Case) -> Outcome:
    outcome = Outcome()
    with numerics(case):
        model = build(case)
        policy: Policy | str = Restless() if case.policy == "restless" else case.policy
        experts = shard_experts(
            model,
            ctx,
            policy,
            router=RouterConfig(balance_loss=case.balance_loss),
            compute_dtype=torch.bfloat16 if case.bf16 else None,
        )
        whole = wrapped(model, experts, ctx, case)
        optimizer = adamw(model)
        share = ROWS // ctx.world_size
        rows = slice(ctx.rank * share, (ctx.rank + 1) * share)
        for step in range(STEPS):
            total = torch.zeros((), dtype=torch.float64)
            with experts.step(micro_batches=case.accumulation):
                for number, ids in enumerate(micro_batches(case, step)):
                    with syncing(whole, last=number == case.accumulation - 1):
                        loss = mean_loss(whole, ids[rows])
                        if case.balance_loss:
                            loss = loss + experts.auxiliary_loss()
                        loss = loss / case.accumulation
                        loss.backward()
                    total += loss.detach()
            if case.dense == "none":
                average_by_hand(model, experts, ctx)
            outcome.norms.append(experts.clip_grad_norm(model.parameters(), CLIP_NORM))
            optimizer.step()
            optimizer.zero_grad()
            experts.end_step(optimizer)
            torch.distributed.all_reduce(total, group=ctx.groups.control)
            outcome.losses.append(float(total) / ctx.world_size)
    if case.policy == "restless" and ctx.world_size > 1:
        assert experts.owners != even_placements(experts.layers, ctx.world_size)
        assert experts.materializer.copies > 0
    if case.compiled:
        assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    outcome.parameters = dict(experts.full_tensors())
    for name, parameter in model.named_parameters():
        if not name.endswith(".chunks"):
            value = parameter.detach()
            outcome.parameters[name] = (
                value.full_tensor() if isinstance(value, DTensor) else value
            ).clone()
    return outcome


def wrapped(model: Any, experts: ShardedExperts, ctx: ParallelContext, case: Case) -> Any:
    """The dense part as the case has it, the experts left alone."""
    if case.checkpointing:
        model.activation_checkpointing_enable(
            {"use_reentrant": False, "context_fn": experts.checkpoint_contexts}
        )
    if case.compiled:
        for layer in model.model.layers:
            layer.compile(backend=case.compiled)
    if case.dense == "fsdp2":
        half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        mixed = half if case.bf16 else MixedPrecisionPolicy()
        own = set(experts.parameters())
        for module in (*model.model.layers, model):
            fully_shard(module, mesh=ctx.mesh, mp_policy=mixed, ignored_params=own)
    if case.dense == "ddp":
        return DistributedDataParallel(model)
    return model


@contextlib.contextmanager
def syncing(whole: Any, *, last: bool) -> Iterator[None]:
    """Dense gradients cross ranks with the last micro-batch only."""
    if isinstance(whole, DistributedDataParallel) and not last:
        with whole.no_sync():
            yield
        return
    if hasattr(whole, "set_requires_gradient_sync"):
        whole.set_requires_gradient_sync(last)
    yield


def average_by_hand(model: nn.Module, experts: ShardedExperts, ctx: ParallelContext) -> None:
    own = {id(parameter) for parameter in experts.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in own:
            torch.distributed.all_reduce(parameter.grad, group=ctx.groups.control)
            parameter.grad /= ctx.world_size


def assert_equal(ours: Outcome, reference: Outcome, tolerance: float) -> None:
    torch.testing.assert_close(ours.losses, reference.losses, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.norms, reference.norms, rtol=tolerance, atol=tolerance)
    assert ours.parameters.keys() == reference.parameters.keys()
    for name, value in reference.parameters.items():
        assert (ours.parameters[name] - value).abs().max() <= tolerance, name


BASE = Case()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("dense", ["none", "fsdp2", "ddp"])
def test_steps_equal_plain_transformers(dense: str, world_size: int) -> None:
    """Experts are copied and change owners in every step, their moments with them."""
    reference = train_alone(BASE)
    for outcome in run_ranks(train_on_rank, world_size, replace(BASE, dense=dense)):
        assert_equal(outcome, reference, 1e-10)


@pytest.mark.parametrize("dense", ["fsdp2", "ddp"])
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(replace(BASE, accumulation=3), id="accumulation"),
        pytest.param(replace(BASE, checkpointing=True), id="checkpointing"),
        pytest.param(replace(BASE, accumulation=2, checkpointing=True), id="both"),
        pytest.param(replace(BASE, policy="expert_parallel"), id="expert_parallel"),
        pytest.param(replace(BASE, family="gpt_oss"), id="gpt_oss"),
        pytest.param(replace(BASE, balance_loss=0.02, accumulation=2), id="balance"),
    ],
)
def test_variants_equal_plain_transformers(case: Case, dense: str) -> None:
    reference = train_alone(case)
    for outcome in run_ranks(train_on_rank, 2, replace(case, dense=dense)):
        assert_equal(outcome, reference, 1e-10)


@pytest.mark.parametrize(
    ("dense", "checkpointing"),
    [("none", False), ("fsdp2", False), ("fsdp2", True), ("ddp", True)],
)
def test_a_compiled_dense_part_equals_the_eager_one(dense: str, checkpointing: bool) -> None:
    case = replace(BASE, compiled="eager", checkpointing=checkpointing)
    reference = train_alone(case)
    for outcome in run_ranks(train_on_rank, 2, replace(case, dense=dense)):
        assert_equal(outcome, reference, 1e-10)


@pytest.mark.slow
def test_inductor_compiles_the_dense_part() -> None:
    """Fused kernels round otherwise: fp64, but what transformers casts to fp32 differs in it.

    How much, the machine's vector width decides. AdamW moves a weight by up to 1e-3 in a step,
    however small its gradient: what is all rounding may end a hundredth of that elsewhere.
    """
    case = replace(BASE, compiled="inductor")
    reference = train_alone(case)
    for outcome in run_ranks(train_on_rank, 2, case):
        assert_equal(outcome, reference, 1e-5)


@pytest.mark.parametrize("world_size", [1, 2])
def test_bf16_stays_near_the_fp32_model(world_size: int) -> None:
    """bf16 holds 8 bits: losses within 1 %, and masters move as far as AdamW's steps allow."""
    case = replace(BASE, dtype=torch.float32, bf16=True)
    reference = train_alone(case)
    for outcome in run_ranks(train_on_rank, world_size, case):
        torch.testing.assert_close(outcome.losses, reference.losses, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(outcome.norms, reference.norms, rtol=5e-2, atol=1e-2)
        for name, value in reference.parameters.items():
            assert outcome.parameters[name].dtype == torch.float32
            assert (outcome.parameters[name] - value).abs().max() <= 2 * STEPS * 1e-3, name
