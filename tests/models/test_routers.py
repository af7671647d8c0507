"""The router of each layer: which module, which of its outputs, and whether it carries a bias."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import FAMILIES, toy_model
from transformers import AutoConfig

from hecate.models.build import meta_model
from hecate.models.families import find_moe_layers
from hecate.models.routers import find_routers

ROUTERS = {
    "mixtral": "model.layers.{}.mlp.gate",
    "qwen3_moe": "model.layers.{}.mlp.gate",
    "olmoe": "model.layers.{}.mlp.gate",
    "deepseek_v3": "model.layers.{}.mlp.gate",
    "gpt_oss": "model.layers.{}.mlp.router",
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_router_is_the_module_that_scores_experts(family):
    model = toy_model(family)
    layers = find_moe_layers(model)
    routers = find_routers(model, layers)
    first = 1 if family == "deepseek_v3" else 0
    for place, (layer, router) in enumerate(zip(layers, routers, strict=True)):
        assert router.layer is layer
        assert router.module is model.get_submodule(ROUTERS[family].format(first + place))
        assert router.has_logits


def test_the_hook_hands_over_the_raw_logits_of_every_token(family):
    model = toy_model(family)
    layers = find_moe_layers(model)
    routers = find_routers(model, layers)
    seen: list[tuple[int, torch.Tensor, bool]] = []
    inputs: list[torch.Tensor] = []
    for router in routers:
        router.on_logits(lambda index, logits, *, sigmoid: seen.append((index, logits, sigmoid)))
        router.module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        model(input_ids=torch.arange(14).view(2, 7))
    assert [index for index, _, _ in seen] == [0, 1]
    assert {sigmoid for _, _, sigmoid in seen} == {family == "deepseek_v3"}
    for (_, logits, _), hidden, router in zip(seen, inputs, routers, strict=True):
        bias = getattr(router.module, "bias", None)
        expected = F.linear(hidden.reshape(14, 64), router.module.weight, bias)
        assert logits.shape == (14, router.layer.num_experts)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


def test_only_deepseek_carries_a_balancing_bias(family):
    model = toy_model(family)
    for router in find_routers(model, find_moe_layers(model)):
        if family != "deepseek_v3":
            assert router.bias is None
            continue
        assert router.bias is router.module.e_score_correction_bias
        assert router.bias.shape == (8,)


def test_the_bias_is_looked_up_anew_after_the_model_moved():
    model = toy_model("deepseek_v3")
    router = find_routers(model, find_moe_layers(model))[0]
    router.module.e_score_correction_bias = torch.full((8,), 2.0)
    assert router.bias.tolist() == [2.0] * 8


def test_a_family_that_records_no_logits_says_so():
    """The experts stay findable; only the losses that need logits are out of reach."""
    model = toy_model("mixtral")
    layers = find_moe_layers(model)
    bare = nn.Module()
    bare.model = nn.Module()
    bare.model.layers = nn.ModuleList()
    for layer in model.model.layers:
        holder = nn.Module()
        holder.mlp = nn.Module()
        holder.mlp.experts = layer.mlp.experts
        bare.model.layers.append(holder)
    for router, layer in zip(find_routers(bare, layers), layers, strict=True):
        assert not router.has_logits
        assert router.bias is None
        assert router.layer is layer


@pytest.mark.parametrize(
    ("model_type", "sigmoid"),
    [("ernie4_5_moe", False), ("glm4_moe", True), ("minimax_m2", True), ("qwen2_moe", False)],
)
def test_scoring_is_read_off_the_family_not_off_the_bias(model_type: str, sigmoid: bool) -> None:
    """ERNIE adds a balancing bias to softmax scores; Qwen2-MoE's sigmoid is its shared expert's."""
    model = meta_model(AutoConfig.for_model(model_type, num_hidden_layers=3))
    routers = find_routers(model, find_moe_layers(model))
    assert {router.scores_by_sigmoid for router in routers} == {sigmoid}
