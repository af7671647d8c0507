"""Gathers of copies start with a block: behind its dense parameters, and before its attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks
from scripted import Scripted
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from toy_models import toy_config, toy_model

from collectives.transports import Launch, Steps, Transport
from hecate.fssdp import ShardedExperts, shard_experts
from hecate.fssdp.blocks import find_blocks
from hecate.mesh import ParallelContext
from hecate.models.build import meta_model
from hecate.models.families import ChunkLayout, MoELayer, find_moe_layers

COPIES: list[dict[int, tuple[int, ...]]] = [{0: (0, 1), 3: (0, 1)}, {1: (0, 1)}]


class Watched:
    """A transport that calls ``seen`` with the layer of each gather that starts."""

    def __init__(self, transport: Transport, seen: Any) -> None:
        self._transport, self._seen = transport, seen
        self.name, self.hierarchical = transport.name, transport.hierarchical
        self.takes_everyone, self.resources = transport.takes_everyone, transport.resources

    def gather(self, launch: Launch) -> Steps:
        self._seen(launch.changes[0].name)
        return self._transport.gather(launch)

    def reduce(self, launch: Launch) -> Steps:
        return self._transport.reduce(launch)


def watched(ctx: ParallelContext, model: nn.Module, seen: Any) -> ShardedExperts:
    return shard_experts(
        model,
        ctx,
        Scripted(COPIES),
        gathers_by=lambda transport: Watched(transport, seen),
    )


def step_on_rank(ctx: ParallelContext, checkpointing: bool) -> list[tuple[str, int, bool]]:
    """What starts in one step under FSDP2: gathers and attentions, by layer, each with whether
    the dense parameters of the block were whole by then."""
    model = toy_model("qwen3_moe")
    events: list[tuple[str, int, bool]] = []

    def note(what: str, block: Any) -> None:
        whole = not any(isinstance(p, DTensor) for p in block.self_attn.parameters())
        events.append((what, block.self_attn.layer_idx, whole))

    def seen(name: str) -> None:
        note("gather", model.get_submodule(name.removesuffix(".mlp.experts")))

    experts = watched(ctx, model, seen)
    if checkpointing:
        model.activation_checkpointing_enable(
            {"use_reentrant": False, "context_fn": experts.checkpoint_contexts}
        )
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=ctx.mesh, ignored_params=set(experts.parameters()))
    for block in model.model.layers:
        block.self_attn.register_forward_pre_hook(lambda *_, block=block: note("attention", block))
    with experts.step():
        model.train()(torch.arange(8)[None], use_cache=False).logits.sum().backward()
    return events


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gather_follows_the_dense_parameters_of_its_block_and_precedes_its_attention(
    checkpointing,
):
    again = [("attention", 1, True), ("attention", 0, True)] if checkpointing else []
    for events in run_ranks(step_on_rank, 2, checkpointing):
        assert events == [
            ("gather", 0, True),
            ("attention", 0, True),
            ("gather", 1, True),
            ("attention", 1, True),
            *again,
        ]


def gathers_on_rank(ctx: ParallelContext) -> list[list[str]]:
    """The gathers under way at the start of a step and behind the first layer, without blocks."""
    names: list[str] = []
    experts = watched(
        ctx, nn.Sequential(*meta_model(toy_config("qwen3_moe")).model.layers), names.append
    )
    found = []
    experts.begin_step(0, 1)
    found.append(list(names))
    experts.materializer.experts(0)
    experts.materializer.after_forward(0)
    found.append(list(names))
    return found


def test_without_a_list_of_blocks_gathers_start_as_soon_as_they_can():
    for found in run_ranks(gathers_on_rank, 2):
        assert found == [["0.mlp.experts"], ["0.mlp.experts", "1.mlp.experts"]]


def test_blocks_without_experts_are_blocks_too():
    model = meta_model(toy_config("deepseek_v3"))
    layers = find_moe_layers(model)
    assert [layer.name.split(".")[2] for layer in layers] == ["1", "2"]
    assert find_blocks(model, layers) == tuple(model.model.layers)


def nested(*names: str) -> tuple[nn.Module, tuple[MoELayer, ...]]:
    """Modules at these paths, in a ``ModuleList`` wherever a part of one is a number."""
    root = nn.Module()
    for name in names:
        module, parts = root, name.split(".")
        for part, following in zip(parts, [*parts[1:], ""], strict=True):
            if not hasattr(module, part):
                child = nn.ModuleList() if following.isdigit() else nn.Module()
                module.add_module(part, child)
            module = getattr(module, part)
    return root, tuple(MoELayer(i, n, 1, ChunkLayout(())) for i, n in enumerate(names))


def test_a_block_is_the_outermost_that_has_no_other_layer():
    model, layers = nested("stages.0.layers.0.mlps.0", "stages.0.layers.1.mlps.0")
    blocks = [model.get_submodule(f"stages.0.layers.{i}") for i in (0, 1)]
    assert find_blocks(model, layers) == tuple(blocks)


def test_one_layer_that_is_in_no_block_is_enough_to_have_none():
    assert find_blocks(*nested("layers.0.experts", "experts")) == ()
