"""Gradients of replicas: in fp32, in a fixed order, the same to the bit, and as often as needed.

What a replica's gradient goes through: GEMMs of a micro-batch in the compute dtype, a sum over
micro-batches in the masters' dtype, one reduction, in which the owner adds ranks in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import permutations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from scripted import Restless, Scripted
from toy_models import toy_config, toy_model

from collectives import TRANSPORTS
from hecate.fssdp import ExpertsConfig, ShardedExperts, shard_experts
from hecate.mesh import ParallelContext
from hecate.models.build import meta_model
from hecate.models.families import find_moe_layers
from hecate.planner.policies import Policy

FAMILY = "qwen3_moe"
EVERY_RANK = (0, 1, 2, 3)
CHOSEN = (0, 2)
# What rank r's output gradient is scaled by in each micro-batch. Powers of two: GEMMs round nothing
# away, sums do. bf16 drops the second micro-batch of most ranks, and fp32 what 2**20 hides.
SCALES_WB = ((1.0, 2**-12), (2.0**20, 2**-2), (-(2.0**20), 1.0), (2.0, 2**-9))

Grads = dict[int, dict[str, torch.Tensor]]


def sharded(
    ctx: ParallelContext, policy: Policy, *, rematerialize: bool = False, transport: str = "auto"
) -> ShardedExperts:
    """The toy's experts with its weights, masters in fp32, computing in bf16."""
    return shard_experts(
        toy_model(FAMILY),
        ctx,
        policy,
        config=ExpertsConfig(rematerialize=rematerialize, transport=transport),
        compute_dtype=torch.bfloat16,
        average_gradients=False,
    )


def one_token_each(ctx: ParallelContext, rematerialize: bool, transport: str) -> Grads:
    """Every rank computes its own token of each micro-batch; gradients of the chosen experts."""
    copies = [dict.fromkeys(CHOSEN, EVERY_RANK), {}]
    policy = Scripted(copies, "even")
    experts = sharded(ctx, policy, rematerialize=rematerialize, transport=transport)
    scales_B = SCALES_WB[ctx.rank]
    experts.begin_step(0, len(scales_B))
    for scale in scales_B:
        x_TD = first_axis(1.0).requires_grad_()
        y_TD = experts.modules[0](x_TD, torch.tensor([CHOSEN]), torch.ones(1, len(CHOSEN)))
        y_TD.backward(first_axis(scale))
    experts.finish_backward()
    assert (
        experts.log.computed_EW[0].sum(0).tolist() == [len(CHOSEN) * len(scales_B)] * ctx.world_size
    )
    shard, views = experts.shards[0], experts.layers[0].layout.views
    return {
        e: {name: view[0].clone() for name, view in views(shard.grad_row(e)[None]).items()}
        for e in shard.expert_ids
        if e in CHOSEN
    }


def first_axis(value: float) -> torch.Tensor:
    """``[1, D]``: one token that lies along the first axis."""
    return F.one_hot(torch.tensor([0]), 64) * value


def of_micro_batch(weights: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """The gradients of one expert, written out in bf16 from transformers' formula."""
    own = {name: w.to(torch.bfloat16).requires_grad_() for name, w in weights.items()}
    gate_TF, up_TF = (first_axis(1.0).bfloat16() @ own["gate_up_proj"].t()).chunk(2, dim=-1)
    y_TD = (F.silu(gate_TF) * up_TF) @ own["down_proj"].t()
    y_TD.backward(first_axis(scale).bfloat16())
    return {name: w.grad for name, w in own.items() if w.grad is not None}


def summed(parts_WB: Sequence[Sequence[torch.Tensor]], dtype: torch.dtype) -> torch.Tensor:
    """Micro-batch after micro-batch, then rank after rank, each addition rounded to ``dtype``."""
    of_ranks = [reduce(torch.add, [part.to(dtype) for part in parts]) for parts in parts_WB]
    return reduce(torch.add, of_ranks)


@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
@pytest.mark.parametrize("rematerialize", [False, True])
def test_bf16_gradients_are_summed_in_fp32_in_the_order_of_micro_batches_and_ranks(
    rematerialize, transport
):
    module = toy_model(FAMILY).get_submodule(
        find_moe_layers(meta_model(toy_config(FAMILY)))[0].name
    )
    got: Grads = {}
    for of_rank in run_ranks(one_token_each, 4, rematerialize, transport):
        got |= of_rank
    assert sorted(got) == list(CHOSEN)
    for e in CHOSEN:
        weights = {name: p.detach()[e] for name, p in module.named_parameters()}
        parts = [[of_micro_batch(weights, scale) for scale in row] for row in SCALES_WB]
        for name, grad in got[e].items():
            parts_WB = [[part[name] for part in row] for row in parts]
            expected = summed(parts_WB, torch.float32)
            allowed = [expected]
            if transport == "broadcast":  # what every rank holds is added in the backend's order
                allowed = [summed(order, torch.float32) for order in permutations(parts_WB)]
            assert grad.dtype == torch.float32
            assert (grad == torch.stack(allowed)).any(0).all(), name
            # the order and the dtype both show
            assert not torch.equal(expected, summed(parts_WB[::-1], torch.float32))
            assert not torch.equal(expected, summed(parts_WB, torch.float64).float())
            assert not torch.equal(expected, summed(parts_WB, torch.bfloat16).float())


def train(ctx: ParallelContext, count: int, rematerialize: bool) -> dict[str, Any]:
    """Three steps of SGD while experts are copied and move; the last gradients and masters."""
    experts = sharded(ctx, Restless(), rematerialize=rematerialize)
    optimizer = torch.optim.SGD(experts.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(ctx.rank)
    num_experts = experts.layers[0].num_experts
    for step in range(3):
        with experts.step(step, micro_batches=count):
            for _ in range(count):
                x_TD, d_y_TD = (torch.randn(9, 64, generator=generator) for _ in range(2))
                chosen = torch.rand(9, num_experts, generator=generator).topk(2)
                x_TD.requires_grad_()
                first_TD = experts.modules[0](x_TD, chosen.indices, chosen.values)
                experts.modules[1](first_TD, chosen.indices, chosen.values).backward(d_y_TD)
        grads = [{e: s.grad_row(e).clone() for e in s.expert_ids} for s in experts.shards]
        optimizer.step()
        experts.end_step(optimizer)
    assert experts.materializer.copies > 0
    return {"grads": grads, "masters": dict(experts.full_tensors())}


def assert_same_bits(ours: dict[str, Any], others: dict[str, Any]) -> None:
    for own, other in zip(ours["grads"], others["grads"], strict=True):
        assert own.keys() == other.keys()
        for e, grad in own.items():
            assert grad.abs().max() > 0
            assert torch.equal(grad, other[e])
    for name, master in ours["masters"].items():
        assert torch.equal(master, others["masters"][name]), name


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("world_size", [2, 3])
def test_bf16_steps_repeat_to_the_bit_with_copies_kept_or_gathered_again(world_size, count):
    kept = run_ranks(train, world_size, count, False)
    for other in (False, True):
        for ours, again in zip(kept, run_ranks(train, world_size, count, other), strict=True):
            assert_same_bits(ours, again)


def launches(ctx: ParallelContext, count: int, rematerialize: bool) -> tuple[int, int]:
    """How many gathers and reductions a step of two layers launches on this rank."""
    policy = Scripted([{0: (0, 1)}, {5: (0, 1)}])
    experts = sharded(ctx, policy, rematerialize=rematerialize, transport="all_to_all")
    groups = (ctx.groups.gather, ctx.groups.reduce)
    before = [group._get_sequence_number_for_group() for group in groups]
    with experts.step(micro_batches=count):
        for _ in range(count):
            x_TD = torch.ones(2, 64, requires_grad=True)
            index_TK, weights_TK = torch.tensor([[0, 5]] * 2), torch.ones(2, 2)
            y_TD = experts.modules[0](x_TD, index_TK, weights_TK)
            experts.modules[1](y_TD, index_TK, weights_TK).backward(torch.ones(2, 64))
    after = [group._get_sequence_number_for_group() for group in groups]
    gathers, reductions = (now - then for now, then in zip(after, before, strict=True))
    return gathers, reductions


@pytest.mark.parametrize(
    ("count", "rematerialize", "gathers"),
    [
        (1, False, 2),
        (1, True, 3),
        (3, False, 2),
        # a layer's copies are there until the other's come: two at first, one at each turn
        (3, True, 7),
    ],
)
def test_a_step_reduces_each_layer_once_however_many_micro_batches(count, rematerialize, gathers):
    """With copies that are kept it gathers each layer once, too."""
    assert run_ranks(launches, 2, count, rematerialize) == [(gathers, 2)] * 2
