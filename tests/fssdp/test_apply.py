"""Owners for every expert, and the runtime behind every experts module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from toy_models import FAMILIES, toy_config, toy_model

from hecate.errors import ConfigError, ModelError, UsageError
from hecate.fssdp import RouterConfig, ShardedExperts, shard_experts
from hecate.fssdp.apply import even_placements
from hecate.mesh import MeshConfig, ParallelContext, Rendezvous, open_mesh
from hecate.models.build import meta_model
from hecate.models.families import ChunkLayout, ExpertTensor, MoELayer, find_moe_layers
from hecate.planner.policies import ExpertParallel

QUIET = RouterConfig(balance_loss=0.0)


@pytest.fixture(scope="module")
def ctx() -> Iterator[ParallelContext]:
    with open_mesh(MeshConfig(device="cpu"), Rendezvous.from_environment({})) as context:
        yield context


def shard(
    model: nn.Module,
    ctx: ParallelContext,
    router: RouterConfig = QUIET,
    compute_dtype: torch.dtype | None = None,
) -> ShardedExperts:
    return shard_experts(model, ctx, ExpertParallel(), router=router, compute_dtype=compute_dtype)


def layers_of(*sizes: int) -> tuple[MoELayer, ...]:
    layout = ChunkLayout((ExpertTensor("w", (2,), 0),))
    return tuple(MoELayer(i, f"layers.{i}.experts", size, layout) for i, size in enumerate(sizes))


def test_larger_shares_fall_on_the_ranks_in_turn():
    placements = even_placements(layers_of(5, 5, 5), 3)
    assert [placement.owners for placement in placements] == [
        (0, 0, 1, 1, 2),
        (2, 2, 0, 0, 1),
        (1, 1, 2, 2, 0),
    ]


def test_with_more_ranks_than_experts_every_rank_gets_some_over_the_layers():
    placements = even_placements(layers_of(2, 2, 2, 2), 4)
    assert [placement.owners for placement in placements] == [(0, 1), (2, 3), (0, 1), (2, 3)]


@given(sizes=st.lists(st.integers(1, 20), max_size=8), world_size=st.integers(1, 12))
def test_over_all_layers_ranks_differ_by_at_most_one_expert(sizes, world_size):
    placements = even_placements(layers_of(*sizes), world_size)
    assert [placement.num_chunks for placement in placements] == sizes
    totals = [sum(len(p.chunks_on(rank)) for p in placements) for rank in range(world_size)]
    assert sum(totals) == sum(sizes)
    assert max(totals) - min(totals) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ranks_together_hold_each_expert_once(family, world_size, ctx):
    owned: list[list[int]] = []
    for rank in range(world_size):
        model = meta_model(toy_config(family))
        layers = find_moe_layers(model)
        experts = shard(model, replace(ctx, rank=rank, world_size=world_size))
        owned = owned or [[] for _ in layers]
        assert experts.layers == layers
        for layer, held, own, placement in zip(
            layers, owned, experts.shards, experts.owners, strict=True
        ):
            assert own.layer == layer
            assert own.expert_ids == placement.chunks_on(rank)
            assert own.parameter.shape == (len(own.expert_ids), layer.layout.numel)
            held += own.expert_ids
        assert experts.parameters() == [s.parameter for s in experts.shards]
    for layer, held in zip(layers, owned, strict=True):
        assert sorted(held) == list(range(layer.num_experts))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_experts_module_keeps_its_chunks_and_nothing_else(family, ctx):
    model = meta_model(toy_config(family))
    layers = find_moe_layers(model)
    dense = sum(p.numel() for p in model.parameters()) - sum(
        layer.num_experts * layer.layout.numel for layer in layers
    )
    experts = shard(model, replace(ctx, rank=1, world_size=2))
    for layer, own in zip(layers, experts.shards, strict=True):
        module = model.get_submodule(layer.name)
        assert [name for name, _ in module.named_parameters()] == ["chunks"]
        assert module.chunks is own.parameter
        assert module.runtime.shard is own
    here = sum(p.numel() for p in model.parameters())
    assert here == dense + sum(own.parameter.numel() for own in experts.shards)


def test_a_bf16_run_keeps_fp32_masters(ctx):
    model = meta_model(toy_config("olmoe"))
    experts = shard(model, ctx, compute_dtype=torch.bfloat16)
    own = experts.shards[0]
    assert own.parameter.dtype == torch.float32
    assert {weight.dtype for weight in own.weights.values()} == {torch.bfloat16}
    with torch.no_grad():
        own.parameter.fill_(2)
    experts.refresh()
    assert bool((own.weights["down_proj"] == 2).all())


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "deepseek_v3"])
def test_a_bias_rate_in_a_family_without_the_bias_is_refused(family, ctx):
    model = meta_model(toy_config(family))
    with pytest.raises(ConfigError, match=r"router\.bias_update_rate") as caught:
        shard(model, ctx, RouterConfig(bias_update_rate=0.001))
    assert "model.layers.0.mlp.experts" in caught.value.got
    assert "router.balance_loss" in caught.value.fix


def test_a_bias_rate_in_a_family_with_the_bias_is_taken(ctx):
    model = meta_model(toy_config("deepseek_v3"))
    experts = shard(model, ctx, RouterConfig(bias_update_rate=0.001))
    assert [router.bias.shape for router in experts.routers] == [(8,), (8,)]


def without_logits() -> nn.Module:
    """Experts of a real family under a model that declares no router."""
    model = meta_model(toy_config("mixtral"))
    bare = nn.Module()
    bare.block = nn.Module()
    bare.block.experts = model.get_submodule("model.layers.0.mlp.experts")
    return bare


@pytest.mark.parametrize(
    "router", [RouterConfig(balance_loss=0.01), RouterConfig(balance_loss=0, z_loss=0.001)]
)
def test_losses_that_need_logits_are_refused_where_there_are_none(router, ctx):
    model = without_logits()
    with pytest.raises(ConfigError, match="need router logits") as caught:
        shard(model, ctx, router)
    assert "block.experts" in caught.value.got


def test_a_family_without_logits_trains_without_those_losses(ctx):
    model = without_logits()
    assert len(shard(model, ctx).shards) == 1


@pytest.mark.parametrize(
    ("router", "hooks"),
    [
        (RouterConfig(balance_loss=0.0, z_loss=0.0), 0),
        (RouterConfig(balance_loss=0.1, z_loss=0.0), 1),
        (RouterConfig(balance_loss=0.0, z_loss=0.1), 1),
    ],
)
def test_logits_are_watched_only_where_a_loss_needs_them(router, hooks, ctx):
    model = meta_model(toy_config("olmoe"))
    experts = shard(model, ctx, router)
    for found in experts.routers:
        assert len(found.module._forward_hooks) == hooks


def test_a_model_is_sharded_once(ctx):
    model = meta_model(toy_config("olmoe"))
    shard(model, ctx)
    with pytest.raises(UsageError, match="sharded already") as caught:
        shard(model, ctx)
    assert "model.layers.0.mlp.experts" in caught.value.got
    assert "once for each model" in caught.value.fix


def test_a_model_without_experts_is_refused(ctx):
    with pytest.raises(ModelError, match="Linear has no MoE layer that Hecate can shard"):
        shard(nn.Linear(2, 2), ctx)


def test_frozen_experts_are_refused(ctx):
    model = meta_model(toy_config("olmoe"))
    model.requires_grad_(False)
    with pytest.raises(ModelError, match="are frozen"):
        shard(model, ctx)


def test_experts_come_before_ddp(ctx):
    with pytest.raises(UsageError, match="holds the experts already") as caught:
        shard(DistributedDataParallel(toy_model("olmoe")), ctx)
    assert "shard_experts(model, ...) first" in caught.value.fix


def test_experts_come_before_fsdp2(ctx):
    model = toy_model("olmoe")
    fully_shard(model, mesh=ctx.mesh)
    with pytest.raises(UsageError, match="FSDP2 holds the experts of model.layers.0") as caught:
        shard(model, ctx)
    assert "ignored_params=set(experts.parameters())" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "hint"),
    [("fsspd", "did you mean fssdp?"), ("replicate", "did you mean replication?")],
)
def test_an_unknown_policy_is_told_the_nearest(name, hint, ctx):
    with pytest.raises(ConfigError, match="no policy has this name") as caught:
        shard_experts(meta_model(toy_config("olmoe")), ctx, name)
    assert caught.value.got == name
    assert hint in caught.value.fix
    assert "expert_parallel" in caught.value.expected
