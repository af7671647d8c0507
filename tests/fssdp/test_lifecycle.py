"""Calls of a training loop in the wrong place: each is one error that says what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from toy_models import toy_model

from hecate.errors import UsageError
from hecate.fssdp import RouterConfig, ShardedExperts, shard_experts
from hecate.mesh import MeshConfig, ParallelContext, Rendezvous, open_mesh

IDS = torch.arange(12).view(2, 6)


@pytest.fixture(scope="module")
def ctx() -> Iterator[ParallelContext]:
    with open_mesh(MeshConfig(device="cpu"), Rendezvous.from_environment({})) as context:
        yield context


class Loop:
    """A toy, its experts and an optimizer."""

    def __init__(self, ctx: ParallelContext, **options: Any) -> None:
        self.model = toy_model("qwen3_moe").train()
        self.experts: ShardedExperts = shard_experts(self.model, ctx, "expert_parallel", **options)
        self.optimizer = torch.optim.AdamW(self.model.parameters())

    def loss(self) -> torch.Tensor:
        loss: torch.Tensor = self.model(input_ids=IDS, labels=IDS).loss
        return loss

    def micro_batch(self) -> None:
        self.loss().backward()


@pytest.fixture
def loop(ctx: ParallelContext) -> Loop:
    return Loop(ctx)


def test_a_forward_pass_outside_a_step_needs_no_grad(loop):
    with pytest.raises(UsageError, match=r"mlp\.experts outside a step") as caught:
        loop.loss()
    assert "between steps" in caught.value.got
    assert "torch.no_grad()" in caught.value.fix
    with torch.no_grad():
        assert loop.loss().isfinite()


def test_a_backward_pass_outside_a_step_is_refused(loop):
    loop.experts.begin_step(0, 1)
    loss = loop.loss()
    loss.backward(retain_graph=True)
    loop.experts.finish_backward()
    with pytest.raises(UsageError, match="a backward pass reaches model.layers.1.mlp.experts"):
        loss.backward()


def test_a_step_that_has_not_ended_is_followed_by_none(loop):
    with loop.experts.step():
        loop.micro_batch()
    loop.optimizer.step()
    with pytest.raises(UsageError, match="before the one before has ended") as caught:
        loop.experts.begin_step(1, 1)
    assert "experts.end_step(optimizer)" in caught.value.fix


def test_a_step_finishes_once(loop):
    with loop.experts.step():
        loop.micro_batch()
    with pytest.raises(UsageError, match="finish_backward ends the backward passes"):
        loop.experts.finish_backward()


def test_a_step_ends_once(loop):
    with loop.experts.step():
        loop.micro_batch()
    loop.experts.end_step(loop.optimizer)
    with pytest.raises(UsageError, match="end_step comes after the backward passes"):
        loop.experts.end_step(loop.optimizer)


def test_a_step_does_not_end_before_its_backward_passes(loop):
    loop.experts.begin_step(0, 1)
    with pytest.raises(UsageError, match="end_step comes after the backward passes"):
        loop.experts.end_step(loop.optimizer)


def test_fewer_micro_batches_than_announced(loop):
    with pytest.raises(UsageError, match="fewer micro-batches") as caught:
        with loop.experts.step(micro_batches=3):
            loop.micro_batch()
    assert caught.value.got == "1 backward passes of 3"


def test_more_micro_batches_than_announced(loop):
    with pytest.raises(UsageError, match="more micro-batches") as caught:
        with loop.experts.step():
            loop.micro_batch()
            loop.micro_batch()
    assert "micro_batches=k" in caught.value.fix


def test_two_forward_passes_before_a_backward_one(loop):
    with pytest.raises(UsageError, match="outstanding"):
        with loop.experts.step(micro_batches=2):
            (loop.loss() + loop.loss()).backward()


def test_a_step_of_no_micro_batches(loop):
    with pytest.raises(UsageError, match="at least one micro-batch"):
        loop.experts.begin_step(0, 0)


def test_an_error_inside_a_step_comes_through(loop):
    with pytest.raises(ZeroDivisionError):
        with loop.experts.step():
            raise ZeroDivisionError


def test_steps_count_themselves(loop):
    for number in range(3):
        with loop.experts.step():
            loop.micro_batch()
        assert loop.experts.step_number == number
        loop.experts.end_step(loop.optimizer)
    with loop.experts.step(10):
        loop.micro_batch()
    assert loop.experts.step_number == 10


def test_an_optimizer_without_the_experts(loop):
    dense = [p for n, p in loop.model.named_parameters() if not n.endswith("chunks")]
    with loop.experts.step():
        loop.micro_batch()
    with pytest.raises(UsageError, match="no optimizer given to end_step holds the experts"):
        loop.experts.end_step(torch.optim.AdamW(dense))


def test_recomputation_that_would_route_anew(loop):
    loop.model.activation_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(UsageError, match="is recomputed, and would route its tokens anew") as got:
        with loop.experts.step():
            loop.micro_batch()
    assert "context_fn=experts.checkpoint_contexts" in got.value.fix


def test_an_auxiliary_loss_that_no_loss_contains(ctx):
    loop = Loop(ctx, router=RouterConfig(balance_loss=0.01))
    with pytest.raises(UsageError, match="no loss had them in it") as caught:
        with loop.experts.step():
            loop.micro_batch()
    assert "experts.auxiliary_loss()" in caught.value.fix


def test_a_model_that_is_converted_afterwards(loop):
    loop.model.to(torch.float64)
    with pytest.raises(UsageError, match="moved or converted after shard_experts"):
        loop.experts.begin_step(0, 1)


def test_fsdp2_that_takes_the_experts_too(ctx):
    loop = Loop(ctx)
    fully_shard(loop.model, mesh=ctx.mesh)
    with pytest.raises(UsageError, match="were replaced after shard_experts") as caught:
        loop.experts.begin_step(0, 1)
    assert "ignored_params=set(experts.parameters())" in caught.value.fix


class Around(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.model(input_ids=ids, labels=ids).loss
        return loss


def ddp_around_more(ctx: ParallelContext) -> str:
    loop = Loop(ctx)
    around = DistributedDataParallel(Around(loop.model))
    with pytest.raises(UsageError) as caught:
        with loop.experts.step():
            around(IDS).backward()
    return str(caught.value)


def test_ddp_around_more_than_the_model_that_was_sharded():
    for text in run_ranks(ddp_around_more, 2):
        assert "DistributedDataParallel made all ranks' experts alike" in text
        assert "the very module that DistributedDataParallel wraps" in text
