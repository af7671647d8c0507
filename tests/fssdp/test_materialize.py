"""Replicas over real ranks: the layers give what they give in one process, whoever computes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from gpus import gpus, no_host_wait
from ranks import run_ranks
from scripted import Scripted
from toy_models import toy_config, toy_model

from collectives import TRANSPORTS
from hecate.errors import CollectiveFailure
from hecate.fssdp import ExpertsConfig, shard_experts
from hecate.mesh import ParallelContext
from hecate.models.build import meta_model
from hecate.models.families import find_moe_layers

TOKENS = (5, 1, 0, 8)
TOP_K = 2
FAMILY = "qwen3_moe"
EVERYWHERE = {e: (0, 1, 2, 3) for e in range(16)}
SCRIPTS: dict[str, list[dict[int, tuple[int, ...]]]] = {
    "none": [{}, {}],
    "a hot expert on every rank": [{0: (0, 1, 2, 3)}, {3: (0, 1, 2, 3)}],
    "copies on one rank": [{0: (1,), 2: (1,)}, {1: (0,), 2: (1,), 5: (2,)}],
    "only in the first layer": [{0: (1,), 3: (0, 1)}, {}],
    "everything everywhere": [EVERYWHERE, EVERYWHERE],
}
# added to the copies of these scripts once the counts are known
LATE: dict[str, list[dict[int, tuple[int, ...]]]] = {
    "none": [{3: (0, 1, 2, 3)}, {0: (1,)}],
    "copies on one rank": [{0: (2, 3), 3: (0,)}, {}],
}


def micro_batches(rank: int, num_experts: int, count: int) -> list[tuple[torch.Tensor, ...]]:
    """Hidden states, choices, weights and output gradient; expert 1 is never chosen."""
    generator = torch.Generator().manual_seed(rank)
    batches = []
    for _ in range(count):
        tokens = TOKENS[rank]
        x_TD, d_y_TD = (
            torch.randn(tokens, 64, generator=generator, dtype=torch.float64) for _ in range(2)
        )
        score_TE = torch.rand(tokens, num_experts, generator=generator)
        score_TE[:, 1] = -1
        weights_TK = torch.rand(tokens, TOP_K, generator=generator, dtype=torch.float64)
        batches.append((x_TD, score_TE.topk(TOP_K).indices, weights_TK, d_y_TD))
    return batches


class Heard(logging.Handler):
    """What a rank's log says, one text a record."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def two_layers(
    ctx: ParallelContext,
    script: str,
    rule: str,
    rematerialize: bool,
    count: int,
    steps: int,
    late: bool = False,
    transport: str = "auto",
    copies_mib: float = 0.0,
) -> dict[str, Any]:
    """Two experts modules in a row, ``steps`` times; the last step's results."""
    model, source = meta_model(toy_config(FAMILY)), toy_model(FAMILY, dtype=torch.float64)
    layers = find_moe_layers(model)
    experts = shard_experts(
        model,
        ctx,
        Scripted(SCRIPTS[script], rule, LATE[script] if late else ()),
        config=ExpertsConfig(
            rematerialize=rematerialize, transport=transport, copies_mib=copies_mib
        ),
        compute_dtype=torch.float64,
        average_gradients=False,
    )
    for shard in experts.shards:
        weights = dict(source.get_submodule(shard.layer.name).named_parameters())
        for e in shard.expert_ids:
            shard.write(e, {name: w.detach()[e] for name, w in weights.items()})
    experts.refresh()
    modules = [model.get_submodule(layer.name) for layer in layers]
    optimizer = torch.optim.SGD(experts.parameters(), lr=0.0)
    heard = Heard()
    logging.getLogger("hecate.fssdp.sharded").addHandler(heard)
    for step in range(steps):
        results = []
        experts.begin_step(step, count)
        batches = micro_batches(ctx.rank, layers[0].num_experts, count)
        for batch in batches:
            x_TD, index_TK, weights_TK, d_y_TD = (tensor.to(ctx.device) for tensor in batch)
            x_TD.requires_grad_()
            y_TD = modules[1](modules[0](x_TD, index_TK, weights_TK), index_TK, weights_TK)
            y_TD.backward(d_y_TD)
            results.append((y_TD.detach().cpu(), x_TD.grad.cpu()))
        experts.finish_backward()
        experts.end_step(optimizer)
    return {
        "results": results,
        "experts": [
            {e: shard.grad_row(e).clone().cpu() for e in shard.expert_ids}
            for shard in experts.shards
        ],
        "computed": experts.metrics.computed_slots.tolist(),
        "slot_bytes": experts.materializer.slot_bytes,
        "copies": experts.materializer.copies,
        "heard": heard.messages,
    }


def in_one_process(world_size: int, count: int) -> tuple[list[Any], list[torch.Tensor]]:
    model = toy_model(FAMILY, dtype=torch.float64)
    model.set_experts_implementation("eager")
    modules = [model.get_submodule(layer.name) for layer in find_moe_layers(model)]
    num_experts = find_moe_layers(model)[0].num_experts
    results = []
    for rank in range(world_size):
        of_rank = []
        for x_TD, index_TK, weights_TK, d_y_TD in micro_batches(rank, num_experts, count):
            if len(x_TD) == 0:  # nothing to do, and eager experts give no graph
                of_rank.append((x_TD, x_TD))
                continue
            x_TD.requires_grad_()
            y_TD = modules[1](modules[0](x_TD, index_TK, weights_TK), index_TK, weights_TK)
            y_TD.backward(d_y_TD)
            of_rank.append((y_TD.detach(), x_TD.grad))
        results.append(of_rank)
    return results, [
        torch.cat([p.grad.flatten(1) for p in module.parameters()], 1) for module in modules
    ]


def assert_as_in_one_process(outcomes: list[dict[str, Any]], count: int) -> None:
    results, gradients = in_one_process(len(outcomes), count)
    for outcome, expected in zip(outcomes, results, strict=True):
        for got, wanted in zip(outcome["results"], expected, strict=True):
            for ours, theirs in zip(got, wanted, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    for layer, expected_EC in enumerate(gradients):
        held = {e: row for outcome in outcomes for e, row in outcome["experts"][layer].items()}
        assert sorted(held) == list(range(len(expected_EC)))
        for e, row in held.items():
            torch.testing.assert_close(row, expected_EC[e], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rule", ["even", "weighted"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_replicas_change_nothing_but_who_computes(script, rule):
    outcomes = run_ranks(two_layers, 4, script, rule, False, 1, 2)
    assert_as_in_one_process(outcomes, 1)


@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
@pytest.mark.parametrize("late", [False, True])
def test_every_transport_carries_them(transport, late):
    script = "copies on one rank"
    outcomes = run_ranks(two_layers, 3, script, "weighted", True, 1, 2, late, transport)
    assert_as_in_one_process(outcomes, 1)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("rematerialize", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_micro_batches_and_rematerialization(world_size, rematerialize, count):
    script = "copies on one rank"
    outcomes = run_ranks(two_layers, world_size, script, "weighted", rematerialize, count, 2)
    assert_as_in_one_process(outcomes, count)


@pytest.mark.parametrize("script", LATE)
@pytest.mark.parametrize(("rematerialize", "count"), [(False, 1), (True, 1), (False, 3), (True, 3)])
def test_copies_that_are_added_after_the_gate(script, rematerialize, count):
    outcomes = run_ranks(two_layers, 4, script, "even", rematerialize, count, 2, True)
    assert_as_in_one_process(outcomes, count)


def test_who_computes_is_counted():
    """Every rank holds everything: each computes the slots of its own tokens."""
    for outcome in run_ranks(two_layers, 4, "everything everywhere", "even", False, 1, 1):
        assert outcome["computed"] == [[tokens * TOP_K for tokens in TOKENS]] * 2


def test_one_layer_of_weights_and_one_of_gradients_with_rematerialization():
    """Everything everywhere at 2 ranks: copies of half of the experts, two layers."""
    layers = find_moe_layers(meta_model(toy_config(FAMILY)))
    half_bytes = layers[0].num_experts // 2 * layers[0].layout.numel * 8
    for rematerialize, buffers in ((False, 2 + 1), (True, 1 + 1)):
        script = "everything everywhere"
        outcomes = run_ranks(two_layers, 2, script, "even", rematerialize, 1, 1)
        assert [o["slot_bytes"] for o in outcomes] == [buffers * half_bytes] * 2


def short_of_memory(ctx: ParallelContext, rematerialize: Any, mib: float) -> dict[str, Any]:
    """Two steps under a policy that wants everything everywhere."""
    model = meta_model(toy_config(FAMILY))
    experts = shard_experts(
        model,
        ctx,
        Scripted(SCRIPTS["everything everywhere"]),
        config=ExpertsConfig(rematerialize=rematerialize, copies_mib=mib),
        average_gradients=False,
    )
    experts.loads.push(np.ones_like(experts.log.counts_YE.numpy()))
    experts.begin_step(0, 1)
    held = [[len(held) for held in layer.plan.held] for layer in experts.materializer.layers]
    return {"held": held, "slot_bytes": experts.materializer.slot_bytes}


@pytest.mark.parametrize("rematerialize", [False, True, "auto"])
def test_copies_that_memory_does_not_hold_are_left_out(rematerialize):
    numel = find_moe_layers(meta_model(toy_config(FAMILY)))[0].layout.numel
    one_mib = numel * 4 / 2**20  # weights and gradients are fp32
    experts = find_moe_layers(meta_model(toy_config(FAMILY)))[0].num_experts
    wanted = experts // 2
    # as much as re-materialization needs: gradients and weights of one layer
    outcomes = run_ranks(short_of_memory, 2, rematerialize, 2 * wanted * one_mib)
    for outcome in outcomes:
        assert outcome["slot_bytes"] <= 2 * wanted * numel * 4
        full = [[experts, experts]] * 2
        assert (outcome["held"] == full) == (rematerialize is not False)


@pytest.mark.parametrize(("mib", "copies"), [(0.1, 2 * 1), (1e-6, 0), (64.0, 2 * 6)])
def test_with_too_little_memory_it_trains_with_fewer_copies_and_says_so_once(mib, copies):
    """Three steps, and the copies of the last; an expert is 3 x 64 x 32 elements of fp64, 48 KiB,
    and so is its gradient."""
    settings = ("everything everywhere", "even", False, 1, 3, False, "p2p", mib)
    outcomes = run_ranks(two_layers, 2, *settings)
    assert_as_in_one_process(outcomes, 1)
    first, second = outcomes
    assert second["heard"] == []
    assert first["copies"] == second["copies"] == copies
    if copies == 2 * 6:
        assert first["heard"] == []
        return
    (message,) = first["heard"]
    assert message.startswith("step 0: no memory for ")
    assert "experts.copies_mib" in message


def other_plans(ctx: ParallelContext) -> str:
    """Rank 2 copies another expert of the second layer than the others do."""
    script: list[dict[int, tuple[int, ...]]] = [{0: (0, 1, 2)}, {ctx.rank // 2: (0, 1, 2)}]
    experts = shard_experts(
        meta_model(toy_config(FAMILY)), ctx, Scripted(script), average_gradients=False
    )
    try:
        experts.begin_step(0, 1)
    except CollectiveFailure as error:
        return str(error)
    return ""


def test_ranks_that_plan_differently_hear_of_it_before_anything_moves():
    for message in run_ranks(other_plans, 3):
        assert "another plan than most: layer model.layers.1.mlp.experts on rank 2" in message


ON_GPUS = [
    (transport, rematerialize, count, late)
    for transport in (*sorted(TRANSPORTS), "auto")
    for rematerialize, count, late in ((False, 1, False), (True, 1, True), (True, 3, False))
]


@pytest.mark.parametrize(
    ("transport", "rematerialize", "count", "late"),
    [pytest.param(*case, marks=gpus(2)) for case in ON_GPUS],
)
def test_on_gpus_replicas_change_nothing_but_who_computes(transport, rematerialize, count, late):
    settings = ("copies on one rank", "weighted", rematerialize, count, 2, late, transport)
    world_size = min(4, torch.cuda.device_count())
    outcomes = run_ranks(two_layers, world_size, *settings, device="cuda")
    assert_as_in_one_process(outcomes, count)


def copies_without_waiting(ctx: ParallelContext, transport: str, rematerialize: bool) -> None:
    """What a step does about copies, beside computation that the host does not wait for."""
    experts = shard_experts(
        meta_model(toy_config(FAMILY)),
        ctx,
        Scripted(SCRIPTS["everything everywhere"]),
        config=ExpertsConfig(rematerialize=rematerialize, transport=transport),
        dtype=torch.float32,
        compute_dtype=torch.bfloat16,
    )
    for shard in experts.shards:
        for e in shard.expert_ids:
            shard.chunk(e).fill_(1.0 + e)
    experts.refresh()
    materializer, last = experts.materializer, len(experts.shards) - 1
    for step in range(2):
        placements = experts.policy.plan(step, experts.loads, experts.owners)
        seen = []
        with no_host_wait():
            materializer.begin_step(placements, 1, rematerialize=rematerialize)
            for index in range(last + 1):
                for held in materializer.experts(index):
                    copies = [weight.clone() for weight in held.weights.values()]
                    seen += [(held.expert_ids, copy) for copy in copies]
                torch.cuda._sleep(10_000_000)
                materializer.after_forward(index)
            for index in range(last, -1, -1):
                for held in materializer.before_backward(index):
                    for grad in held.grads.values():
                        grad.fill_(1.0 + index)
                torch.cuda._sleep(10_000_000)
                materializer.after_backward(index)
            materializer.finish_step()
        for expert_ids, weight in seen:
            for e, own in zip(expert_ids, weight, strict=True):
                assert bool((own == 1.0 + e).all()), (step, e)
        for index, shard in enumerate(experts.shards):
            for e in shard.expert_ids:
                total = ctx.world_size * (1.0 + index)
                assert bool((shard.grad_row(e) == total).all()), (step, index, e)


@pytest.mark.parametrize("rematerialize", [pytest.param(turns, marks=gpus(2)) for turns in (0, 1)])
@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
def test_on_gpus_the_host_waits_for_no_copy(transport, rematerialize):
    world_size = min(4, torch.cuda.device_count())
    run_ranks(copies_without_waiting, world_size, transport, bool(rematerialize), device="cuda")
