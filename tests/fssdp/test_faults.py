"""A rank that dies or plans badly while experts are copied: one error that names the layer."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from ranks import run_mortals, run_ranks
from scripted import Scripted
from toy_models import toy_config

from collectives import Placement
from hecate.errors import CollectiveFailure, PlacementError
from hecate.fssdp import ShardedExperts, shard_experts
from hecate.mesh import ParallelContext
from hecate.models.build import meta_model
from hecate.planner.load import LoadWindow

WORLD, VICTIM, TIMEOUT_S = 4, 1, 6.0
EVERYWHERE = {e: tuple(range(WORLD)) for e in range(16)}
# Of as many bytes that no socket's buffer takes them.
WIDE = {"moe_intermediate_size": 4096}


@dataclass(frozen=True)
class Deadly(Scripted):
    """Kills the process that plans with it; the others plan to copy everything."""

    kills: bool = False

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().plan(step, loads, owners)


def sharded(ctx: ParallelContext, policy: Scripted) -> ShardedExperts:
    return shard_experts(meta_model(toy_config("qwen3_moe", **WIDE)), ctx, policy)


def planning_on_rank(ctx: ParallelContext) -> str:
    """The victim dies before it says what it planned."""
    experts = sharded(ctx, Deadly([EVERYWHERE] * 2, kills=ctx.rank == VICTIM))
    try:
        experts.begin_step(0, 1)
    except CollectiveFailure as failure:
        return str(failure)
    return "nothing went wrong"


def test_who_compares_plans_with_a_dead_rank_says_so():
    heard = run_mortals(planning_on_rank, WORLD)
    assert sorted(heard) == [0, 2, 3]
    for rank, text in heard.items():
        assert f"rank {rank}: the comparison of plans failed" in text


def gather_on_rank(ctx: ParallelContext, late_s: float) -> str:
    """The victim dies before it sends its experts of the second layer."""
    experts = sharded(ctx, Scripted([EVERYWHERE] * 2))
    materializer = experts.materializer
    try:
        experts.begin_step(0, 1)
        materializer.experts(0)
        if ctx.rank == VICTIM:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(late_s)
        materializer.after_forward(0)
        materializer.experts(1)
    except CollectiveFailure as failure:
        return str(failure)
    return "nothing went wrong"


LATE = pytest.mark.parametrize("late_s", [0.0, 1.0], ids=["waits", "launches"])
"""Whether the others are waiting when the victim dies, or about to send."""


@LATE
@pytest.mark.parametrize("ranks_per_node", [WORLD, 2])
def test_who_waits_for_copies_of_a_dead_rank_says_of_which_layer(ranks_per_node, late_s):
    heard = run_mortals(gather_on_rank, WORLD, late_s, ranks_per_node=ranks_per_node)
    assert sorted(heard) == [0, 2, 3]
    for rank, text in heard.items():
        assert f"rank {rank}: the gather of model.layers.1.mlp.experts failed" in text
        assert "most likely because another rank died or hung" in text
        assert "--resume auto" in text


def reduction_on_rank(ctx: ParallelContext, late_s: float) -> str:
    """The victim dies where it would send home its gradients of the second layer."""
    experts = sharded(ctx, Scripted([EVERYWHERE] * 2))
    materializer = experts.materializer
    try:
        experts.begin_step(0, 1)
        for layer in (0, 1):
            materializer.experts(layer)
            materializer.after_forward(layer)
        materializer.before_backward(1)
        if ctx.rank == VICTIM:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(late_s)
        materializer.after_backward(1)
        materializer.before_backward(0)
    except CollectiveFailure as failure:
        return str(failure)
    return "nothing went wrong"


@LATE
@pytest.mark.parametrize("ranks_per_node", [WORLD, 2])
def test_who_waits_for_gradients_of_a_dead_rank_says_of_which_layer(ranks_per_node, late_s):
    heard = run_mortals(reduction_on_rank, WORLD, late_s, ranks_per_node=ranks_per_node)
    assert sorted(heard) == [0, 2, 3]
    for rank, text in heard.items():
        assert f"rank {rank}: the reduction of model.layers.1.mlp.experts failed" in text


@dataclass(frozen=True)
class Stuck(Scripted):
    """Dies once every rank's counts of a layer are known, or only when nobody waits any more."""

    waits_s: float = 0.0

    def route(self, counts_WE: np.ndarray, placement: Placement) -> np.ndarray:
        time.sleep(self.waits_s)
        os.kill(os.getpid(), signal.SIGKILL)
        return super().route(counts_WE, placement)


def exchange_on_rank(ctx: ParallelContext, waits_s: float) -> str:
    """The victim has no tokens, but experts that the others' tokens are for."""
    config = toy_config("qwen3_moe")
    model = meta_model(config)
    policy = Stuck([], waits_s=waits_s) if ctx.rank == VICTIM else Scripted([])
    experts = shard_experts(model, ctx, policy)
    x_TD = torch.ones(0 if ctx.rank == VICTIM else 8, config.hidden_size)
    index_TK = torch.arange(2 * len(x_TD)).view(-1, 2) % config.num_experts
    experts.begin_step(0, 1)
    try:
        model.get_submodule("model.layers.0.mlp.experts")(
            x_TD, index_TK, torch.ones(index_TK.shape)
        )
    except CollectiveFailure as failure:
        return str(failure)
    return "nothing went wrong"


@pytest.mark.parametrize("waits_s", [0.0, 1.5 * TIMEOUT_S], ids=["dies", "hangs"])
def test_who_waits_for_rows_of_a_rank_says_in_which_layer(waits_s):
    heard = run_mortals(exchange_on_rank, WORLD, waits_s, timeout_s=TIMEOUT_S)
    assert sorted(heard) == [0, 2, 3]
    for rank, text in heard.items():
        assert f"rank {rank}: the token exchange of model.layers.0.mlp.experts failed" in text
        assert "most likely because another rank died or hung" in text


@dataclass(frozen=True)
class Ownerless(Scripted):
    """Leaves the first expert of the second layer to the rank that does not own it."""

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        (owner,), *rest = owners[1].holders
        return owners[0], Placement(((1 - owner,), *rest), owners[1].world_size)


def ownerless_on_rank(ctx: ParallelContext) -> str:
    experts = sharded(ctx, Ownerless([]))
    with pytest.raises(PlacementError) as caught:
        experts.begin_step(0, 1)
    return str(caught.value)


def test_a_policy_that_leaves_out_an_owner_hears_which_layer_and_expert():
    for rank, text in enumerate(run_ranks(ownerless_on_rank, 2)):
        assert f"rank {rank}: the policy plans what cannot be for model.layers.1" in text
        assert (
            "chunk 0 of layer model.layers.1.mlp.experts belongs to rank 0 and is held by" in text
        )
        assert "expected the owner among them" in text
