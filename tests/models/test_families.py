"""MoE layers as transformers families hold them, and one expert as one chunk."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_models import FAMILIES, meta_model, toy_config, toy_model
from transformers import AutoModelForCausalLM, LlamaConfig

from hecate.errors import ModelError
from hecate.models.families import (
    ChunkLayout,
    ExpertTensor,
    find_moe_layers,
    is_experts_module,
)

# [layer names], experts, tensors as (name, shape, offset), elements of a chunk. D = 64.
EXPECTED = {
    "mixtral": (
        ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"],
        4,
        [("gate_up_proj", (192, 64), 0), ("down_proj", (64, 96), 12288)],
        18432,
    ),
    "qwen3_moe": (
        ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"],
        6,
        [("gate_up_proj", (64, 64), 0), ("down_proj", (64, 32), 4096)],
        6144,
    ),
    "olmoe": (
        ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"],
        5,
        [("gate_up_proj", (64, 64), 0), ("down_proj", (64, 32), 4096)],
        6144,
    ),
    "deepseek_v3": (  # layer 0 is dense
        ["model.layers.1.mlp.experts", "model.layers.2.mlp.experts"],
        8,
        [("gate_up_proj", (64, 64), 0), ("down_proj", (64, 32), 4096)],
        6144,
    ),
    "gpt_oss": (  # transposed weights, and biases between them
        ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"],
        4,
        [
            ("gate_up_proj", (64, 64), 0),
            ("gate_up_proj_bias", (64,), 4096),
            ("down_proj", (32, 64), 4160),
            ("down_proj_bias", (64,), 6208),
        ],
        6272,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_and_layout_of_each_family(family):
    names, num_experts, tensors, numel = EXPECTED[family]
    layers = find_moe_layers(meta_model(toy_config(family)))
    assert [layer.name for layer in layers] == names
    assert [layer.index for layer in layers] == [0, 1]
    for layer in layers:
        assert layer.num_experts == num_experts
        assert [(t.name, t.shape, t.offset) for t in layer.layout.tensors] == tensors
        assert layer.layout.numel == numel


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chunk_holds_every_element_of_its_expert_once(family):
    model = toy_model(family)
    layer = find_moe_layers(model)[-1]
    experts = model.get_submodule(layer.name)
    chunks = torch.cat([p.detach().flatten(1) for p in experts.parameters()], dim=1)
    assert chunks.shape == (layer.num_experts, layer.layout.numel)
    views = layer.layout.views(chunks)
    assert list(views) == [name for name, _ in experts.named_parameters()]
    for name, parameter in experts.named_parameters():
        assert torch.equal(views[name], parameter)


def test_views_share_the_chunks_storage():
    layout = ChunkLayout((ExpertTensor("w", (2, 3), 0), ExpertTensor("b", (2,), 6)))
    assert layout.numel == 8
    chunks_eC = torch.arange(16).view(2, 8)
    views = layout.views(chunks_eC)
    assert views["w"].tolist() == [[[0, 1, 2], [3, 4, 5]], [[8, 9, 10], [11, 12, 13]]]
    assert views["b"].tolist() == [[6, 7], [14, 15]]
    views["w"][1, 0, 2] = -5
    views["b"] += 100
    assert chunks_eC.tolist() == [
        [0, 1, 2, 3, 4, 5, 106, 107],
        [8, 9, -5, 11, 12, 13, 114, 115],
    ]


def test_views_of_no_chunks_keep_their_shapes():
    layout = ChunkLayout((ExpertTensor("w", (2, 3), 0), ExpertTensor("b", (2,), 6)))
    views = layout.views(torch.empty(0, 8))
    assert {name: tuple(view.shape) for name, view in views.items()} == {
        "w": (0, 2, 3),
        "b": (0, 2),
    }


def test_only_experts_modules_are_experts_modules():
    model = toy_model("deepseek_v3")
    found = [name for name, module in model.named_modules() if is_experts_module(module)]
    assert found == EXPECTED["deepseek_v3"][0]  # neither shared experts nor dense layers


def test_a_dense_model_is_refused_by_name():
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="LlamaForCausalLM has no MoE layer") as caught:
        find_moe_layers(model)
    assert caught.value.exit_code == 2


def test_experts_that_are_not_stacked_are_refused_with_their_shape():
    model = toy_model("qwen3_moe")
    experts = model.get_submodule("model.layers.1.mlp.experts")
    experts.down_proj = nn.Parameter(torch.zeros(64, 32))
    with pytest.raises(ModelError, match=r"the experts of model\.layers\.1\.mlp\.experts") as error:
        find_moe_layers(model)
    assert error.value.got == "down_proj of shape (64, 32)"
    assert error.value.expected.startswith("[6, ...]")
