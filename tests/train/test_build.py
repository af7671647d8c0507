"""A trainer is composed whole, or refused with the setting that stands in the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from toy_models import FAMILIES, toy_config

from hecate.errors import ConfigError
from hecate.mesh import MeshConfig, ParallelContext, Rendezvous, open_mesh
from hecate.models.build import ModelConfig, initial_dense, initial_expert
from hecate.train.build import Trainer, build_trainer
from hecate.train.config import RunConfig, TrainConfig


@pytest.fixture(scope="module")
def ctx() -> Iterator[ParallelContext]:
    with open_mesh(MeshConfig(device="cpu"), Rendezvous.from_environment({})) as context:
        yield context


def build(
    ctx: ParallelContext,
    family: str,
    *,
    sequence_tokens: int = 16,
    fill: bool = True,
    checkpointing: bool = False,
    **sizes: object,
) -> Trainer:
    fields = toy_config(family, **sizes).to_diff_dict()
    for key in ("model_type", "transformers_version", "architectures", "dtype"):
        fields.pop(key, None)
    config = RunConfig(
        name="build",
        seed=9,
        model=ModelConfig(family=family, sizes=fields),
        train=TrainConfig(steps=1, batch_sequences=1, activation_checkpointing=checkpointing),
        data={"sequence_tokens": sequence_tokens},
    )
    return build_trainer(
        config, ctx, vocab_size=128, phase=lambda _: contextlib.nullcontext(), fill=fill
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_and_buffer_holds_its_initial_value(family, ctx):
    trainer = build(ctx, family)
    tensors = dict(trainer.model.named_parameters()) | dict(trainer.model.named_buffers())
    expected = dict(initial_dense(trainer.model, trainer.layers, 9))
    chunks = {f"{layer.name}.chunks" for layer in trainer.layers}
    assert tensors.keys() == expected.keys() | chunks
    for name, value in expected.items():
        assert torch.equal(tensors[name], value), name
    for layer, shard in zip(trainer.layers, trainer.experts.shards, strict=True):
        for e in range(layer.num_experts):
            for name, value in initial_expert(trainer.model, layer, e, 9).items():
                assert torch.equal(shard.weights[name][e], value), (layer.name, e, name)
    assert trainer.model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fused_loss_is_kept_for_families_that_only_project(family, ctx):
    assert build(ctx, family).root.fused


def test_the_fused_loss_is_dropped_where_the_head_does_more(ctx):
    """Granite divides its logits by ``logits_scaling``."""
    config = RunConfig(
        name="build",
        model=ModelConfig(
            family="granitemoe",
            sizes={
                "hidden_size": 64,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "logits_scaling": 16.0,
                "initializer_range": 0.2,
            },
        ),
        train=TrainConfig(steps=1, batch_sequences=1),
        data={"sequence_tokens": 16},
    )
    trainer = build_trainer(config, ctx, vocab_size=128, phase=lambda _: contextlib.nullcontext())
    assert not trainer.root.fused


def test_tied_embeddings_are_one_parameter(ctx):
    trainer = build(ctx, "qwen3_moe", tie_word_embeddings=True)
    embeddings = trainer.model.get_input_embeddings().weight
    assert trainer.model.get_output_embeddings().weight is embeddings
    held = [p for g in trainer.optimizer.param_groups for p in g["params"] if p is embeddings]
    assert len(held) == 1


def test_checkpointed_layers_are_counted_once(ctx):
    trainer = build(ctx, "olmoe", checkpointing=True)
    assert trainer.model.is_activation_checkpointing
    trainer.experts.begin_step(0, 2)
    ids = torch.arange(2, 18)[None]
    for passes in (1, 2):
        trainer.root(ids, ids, torch.arange(16)[None], (16,)).backward()
        assert trainer.experts.log.counts_YE.sum(1).tolist() == [passes * 16 * 2] * 2


def test_a_sequence_longer_than_the_model_allows_is_refused(ctx):
    with pytest.raises(ConfigError, match=r"data\.sequence_tokens is longer") as caught:
        build(ctx, "mixtral", sequence_tokens=65)
    assert caught.value.got == "65"
    assert "64" in caught.value.expected
    assert build(ctx, "mixtral", sequence_tokens=64)


def test_more_choices_than_experts_are_refused(ctx):
    with pytest.raises(ConfigError, match="more experts than a layer has") as caught:
        build(ctx, "olmoe", num_experts_per_tok=6)
    assert caught.value.got == "num_experts_per_tok = 6"
    assert "at most 5" in caught.value.expected
    assert build(ctx, "olmoe", num_experts_per_tok=5)
