"""One MoE layer over real ranks: what transformers' own experts give, for tokens of each rank."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ranks import run_ranks
from toy_models import toy_config, toy_model

from hecate.fssdp import shard_experts
from hecate.fssdp.routed import combine
from hecate.mesh import ParallelContext
from hecate.models.build import meta_model
from hecate.models.families import find_moe_layers
from hecate.planner.policies import ExpertParallel

TOKENS = (5, 1, 0, 8)  # of each rank
TOP_K = 2


def routing(rank: int, num_experts: int) -> tuple[torch.Tensor, ...]:
    """Hidden states, choices, weights and the gradient of the output; expert 1 is never chosen."""
    generator = torch.Generator().manual_seed(rank)
    tokens = TOKENS[rank]
    x_TD, d_y_TD = (
        torch.randn(tokens, 64, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    score_TE = torch.rand(tokens, num_experts, generator=generator)
    score_TE[:, 1] = -1
    weights_TK = torch.rand(tokens, TOP_K, generator=generator, dtype=torch.float64)
    return x_TD, score_TE.topk(TOP_K).indices, weights_TK, d_y_TD


class Phases:
    def __init__(self) -> None:
        self.entered: list[str] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.entered.append(name)
        yield


def layer_on_rank(ctx: ParallelContext, family: str) -> dict[str, Any]:
    model, source = meta_model(toy_config(family)), toy_model(family, dtype=torch.float64)
    layers, phases = find_moe_layers(model), Phases()
    experts = shard_experts(
        model,
        ctx,
        ExpertParallel(),
        compute_dtype=torch.float64,
        average_gradients=False,
        phase=phases,
    )
    layer, shard = layers[0], experts.shards[0]
    weights = dict(source.get_submodule(layer.name).named_parameters())
    for e in shard.expert_ids:
        shard.write(e, {name: w.detach()[e] for name, w in weights.items()})
    x_TD, index_TK, weights_TK, d_y_TD = routing(ctx.rank, layer.num_experts)
    x_TD.requires_grad_()
    weights_TK.requires_grad_()
    experts.begin_step(0, 1)
    y_TD = model.get_submodule(layer.name)(x_TD, index_TK, weights_TK)
    y_TD.backward(d_y_TD)
    return {
        "y": y_TD.detach(),
        "d_x": x_TD.grad,
        "d_weights": weights_TK.grad,
        "experts": {e: shard.parameter.grad[i] for i, e in enumerate(shard.expert_ids)},
        "counts": experts.log.counts_YE,
        "phases": phases.entered,
    }


def one_process(family: str, world_size: int) -> dict[str, Any]:
    model = toy_model(family, dtype=torch.float64)
    model.set_experts_implementation("eager")
    layer = find_moe_layers(model)[0]
    module = model.get_submodule(layer.name)
    ranks = [routing(rank, layer.num_experts) for rank in range(world_size)]
    x_TD, index_TK, weights_TK, d_y_TD = (torch.cat(part) for part in zip(*ranks, strict=True))
    x_TD.requires_grad_()
    weights_TK.requires_grad_()
    y_TD = module(x_TD, index_TK, weights_TK)
    y_TD.backward(d_y_TD)
    gradients = [p.grad.flatten(1) for p in module.parameters()]
    return {
        "y": y_TD.detach(),
        "d_x": x_TD.grad,
        "d_weights": weights_TK.grad,
        "experts": torch.cat(gradients, 1),
        "counts": torch.bincount(index_TK.flatten(), minlength=layer.num_experts).tolist(),
    }


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_a_layer_over_ranks_is_the_layer_in_one_process(family, world_size):
    outcomes = run_ranks(layer_on_rank, world_size, family)
    expected = one_process(family, world_size)
    for key in ("y", "d_x", "d_weights"):
        together = torch.cat([outcome[key] for outcome in outcomes])
        torch.testing.assert_close(together, expected[key], rtol=1e-12, atol=1e-13)
    held = [e for outcome in outcomes for e in outcome["experts"]]
    assert sorted(held) == list(range(len(expected["experts"])))
    for outcome in outcomes:
        for e, gradient in outcome["experts"].items():
            torch.testing.assert_close(gradient, expected["experts"][e], rtol=1e-12, atol=1e-13)
            assert bool((gradient == 0).all()) == (expected["counts"][e] == 0)
        assert outcome["counts"][0].tolist() == expected["counts"]
        assert outcome["counts"][1].tolist() == [0] * len(expected["counts"])
        # counts, weights and rows there, rows back; in the backward pass rows there, both back
        moves = 0 if world_size == 1 else 7
        assert outcome["phases"].count("all_to_all") == moves
        assert outcome["phases"].count("experts") == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_combine_sums_each_tokens_rows(dtype):
    rows_SD = torch.arange(12, dtype=dtype).view(6, 2)
    row_of_slot_TK = torch.tensor([[2, 0], [5, 5]])
    summed = combine(rows_SD, row_of_slot_TK)
    assert summed.dtype == dtype
    assert summed.tolist() == [[4, 6], [20, 22]]
    assert combine(rows_SD[:0], row_of_slot_TK[:0]).shape == (0, 2)
