"""Models described by a configuration, built without memory, and how their weights start."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from toy_models import FAMILIES, toy_config
from transformers import AutoModelForCausalLM

from hecate.errors import ConfigError, ModelError
from hecate.models.build import (
    ModelConfig,
    build_meta_model,
    hf_config,
    initial_dense,
    initial_expert,
    meta_model,
)
from hecate.models.families import find_moe_layers


def of_family(family: str = "qwen3_moe", **sizes: object) -> ModelConfig:
    return ModelConfig(family=family, sizes=sizes)


@pytest.mark.parametrize("fields", [{}, {"path": "x", "family": "mixtral"}])
def test_exactly_one_source_must_be_given(fields):
    with pytest.raises(ValueError, match="exactly one of path .* and family"):
        ModelConfig(**fields)


def test_sizes_and_the_tokenizers_vocabulary_reach_the_family():
    config = hf_config(of_family(hidden_size=96, num_experts=5), vocab_size=777)
    assert (config.model_type, config.hidden_size, config.num_experts) == ("qwen3_moe", 96, 5)
    assert config.vocab_size == 777
    assert hf_config(of_family(vocab_size=50), vocab_size=777).vocab_size == 50


@pytest.mark.parametrize("family", ["olmoe", "mixtral", "deepseek_v3", "sarvam_moe"])
def test_no_token_of_the_familys_own_tokenizer_is_taken_over(family):
    config = hf_config(of_family(family), vocab_size=777)
    assert config.bos_token_id is config.eos_token_id is config.pad_token_id is None
    assert hf_config(of_family(family, eos_token_id=5), vocab_size=777).eos_token_id == 5


def test_a_model_from_scratch_has_none_of_the_familys_special_tokens():
    """They are ids of a tokenizer that it does not have."""
    config = hf_config(of_family("mixtral", bos_token_id=4), vocab_size=777)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (4, None, None)


def test_a_size_under_the_familys_other_name_counts():
    """Mixtral calls its experts ``num_local_experts`` and answers to ``num_experts`` too."""
    assert hf_config(of_family("mixtral", num_experts=3), vocab_size=9).num_local_experts == 3


def test_one_size_under_both_its_names_is_refused():
    """Otherwise one of the two would have no effect."""
    with pytest.raises(ConfigError, match="sets one field of MixtralConfig twice") as caught:
        hf_config(of_family("mixtral", num_local_experts=8, num_experts=3), vocab_size=9)
    assert caught.value.got.startswith("num_local_experts and num_experts")


def test_a_size_that_only_the_modeling_code_reads_counts():
    """OLMoE's configuration declares no ``head_dim``; its attention reads one."""
    assert hf_config(of_family("olmoe", head_dim=40), vocab_size=9).head_dim == 40


@pytest.mark.parametrize(
    ("family", "nearest"),
    [("qwen3-moe", "qwen3_moe"), ("mixtrl", "mixtral"), ("gptoss", "gpt_oss")],
)
def test_an_unknown_family_names_the_nearest(family, nearest):
    with pytest.raises(ConfigError) as caught:
        hf_config(of_family(family), vocab_size=9)
    assert caught.value.got == family
    assert nearest in caught.value.expected


def test_a_family_without_a_language_model_is_refused():
    with pytest.raises(ConfigError, match="no causal language model"):
        hf_config(of_family("vit"), vocab_size=9)


def test_an_unknown_size_names_the_nearest():
    with pytest.raises(ConfigError, match=r"model\.sizes\.hiden_size .* Qwen3MoeConfig") as caught:
        hf_config(of_family(hiden_size=3), vocab_size=9)
    assert "hidden_size" in caught.value.expected


@pytest.mark.parametrize(
    ("sizes", "got"),
    [
        pytest.param({"hidden_size": "big"}, "'hidden_size' expected int, got str", id="type"),
        pytest.param({"hidden_size": -3}, "negative dimension", id="negative"),
        pytest.param({"num_attention_heads": 0, "head_dim": None}, "ZeroDivision", id="zero"),
        pytest.param({"hidden_act": "swish2"}, "swish2", id="activation"),
    ],
)
def test_a_size_that_the_family_cannot_have_is_the_users_error(sizes, got):
    with pytest.raises((ConfigError, ModelError)) as caught:
        build_meta_model(of_family(**sizes), vocab_size=9)
    assert got in caught.value.got
    assert "\n" not in caught.value.got


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toy_config("qwen3_moe").save_pretrained(tmp_path)
    return tmp_path


def test_a_folders_configuration_counts_and_sizes_override_it(folder):
    config = hf_config(ModelConfig(path=str(folder)), vocab_size=9)
    assert (config.num_experts, config.vocab_size, config.max_position_embeddings) == (6, 128, 64)
    sizes = {"max_position_embeddings": 512, "attention_dropout": 0.5}
    config = hf_config(ModelConfig(path=str(folder), sizes=sizes), vocab_size=9)
    assert (config.num_experts, config.vocab_size) == (6, 128)
    assert (config.max_position_embeddings, config.attention_dropout) == (512, 0.5)


def test_a_home_relative_path_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    config = hf_config(ModelConfig(path=f"~/{folder.name}"), vocab_size=9)
    assert config.num_experts == 6


def test_an_unknown_size_beside_a_folder_names_the_nearest(folder):
    config = ModelConfig(path=str(folder), sizes={"max_position_embedings": 512})
    with pytest.raises(ConfigError) as caught:
        hf_config(config, vocab_size=9)
    assert "max_position_embeddings" in caught.value.expected


@pytest.mark.parametrize(
    ("text", "got"),
    [
        pytest.param("{", "not a valid JSON", id="truncated"),
        pytest.param("{}", "model_type", id="no family"),
        pytest.param('{"model_type": "moe_of_2040"}', "moe_of_2040", id="unknown family"),
        pytest.param(
            '{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}',
            "custom code",
            id="code of its own",
        ),
    ],
)
def test_a_folder_that_transformers_cannot_read_is_refused_without_a_question(tmp_path, text, got):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError) as caught:
        hf_config(ModelConfig(path=str(tmp_path)), vocab_size=9)
    assert str(tmp_path / "config.json") in caught.value.what
    assert got in caught.value.got


def test_a_path_without_a_configuration_says_what_is_missing(tmp_path):
    with pytest.raises(ModelError) as caught:
        hf_config(ModelConfig(path=str(tmp_path)), vocab_size=9)
    assert caught.value.got == "no config.json in it"
    with pytest.raises(ModelError) as caught:
        hf_config(ModelConfig(path=str(tmp_path / "absent")), vocab_size=9)
    assert caught.value.got == "no such folder"


def test_a_family_that_transformers_cannot_generate_with_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match="cannot build a vit model"):
        build_meta_model(ModelConfig(path=str(tmp_path)), vocab_size=9)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_built_model_holds_no_memory_and_needs_the_runtime(family):
    model = meta_model(toy_config(family))
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    experts = model.get_submodule(find_moe_layers(model)[0].name)
    x_TD, index_TK = torch.zeros(1, 64), torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ModelError, match=f"{type(experts).__name__} have no runtime"):
        experts(x_TD, index_TK, torch.ones(1, 1))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def initial_values(family: str, seed: int = 3, **sizes: object) -> dict[str, torch.Tensor]:
    """Every initial value, experts stacked under transformers' names."""
    model = meta_model(toy_config(family, **sizes))
    layers = find_moe_layers(model)
    values = dict(initial_dense(model, layers, seed))
    for layer in layers:
        experts = [initial_expert(model, layer, e, seed) for e in range(layer.num_experts)]
        for tensor in layer.layout.tensors:
            name = f"{layer.name}.{tensor.name}"
            values[name] = torch.stack([expert[tensor.name] for expert in experts])
    return values


def normally_built(family: str, **sizes: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(toy_config(family, **sizes))
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor.detach() for name, tensor in tensors.items()}


def test_every_parameter_and_buffer_starts_as_the_family_starts_it(family):
    """Constants are equal to the bit; random values have the family's mean and spread."""
    ours, theirs = initial_values(family), normally_built(family)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        value = ours[name]
        assert value.shape == expected.shape, name
        assert value.dtype == expected.dtype, name
        assert value.device.type == "cpu"
        # rotary frequencies vary, but not by chance
        if name.endswith("inv_freq") or bool((expected == expected.flatten()[0]).all()):
            assert torch.equal(value, expected), name
            continue
        assert not torch.equal(value, expected), name
        assert torch.equal(value == 0, expected == 0), name  # the padding token's row, say
        # the standard error of a deviation is about 1 / sqrt(2 n); five of them
        n = value.numel()
        assert float(value.std() / expected.std()) == pytest.approx(1, abs=5 / n**0.5), name
        assert abs(float(value.mean())) < 5 * float(expected.std()) / n**0.5, name


def test_initial_values_by_hand(family):
    values = initial_values(family, initializer_range=0.05)
    for name, value in values.items():
        if name.endswith("inv_freq"):
            if family != "gpt_oss":  # which scales them by YaRN
                theta = toy_config(family).rope_parameters["rope_theta"]
                by_hand = torch.tensor([theta ** (-2 * i / 32) for i in range(16)])
                torch.testing.assert_close(value, by_hand)
        elif "norm" in name:
            assert torch.equal(value, torch.ones_like(value)), name
        elif name.endswith("e_score_correction_bias"):
            assert torch.equal(value, torch.zeros(8)), name
        elif value.numel() > 1000:
            assert float(value.std()) == pytest.approx(0.05, rel=0.1), name


def test_values_depend_on_seed_and_name_alone(family):
    model = meta_model(toy_config(family))
    layers = find_moe_layers(model)
    first = dict(initial_dense(model, layers, 3))
    wanted = [(layer, e) for layer in layers for e in range(layer.num_experts)]
    in_order = {(layer.name, e): initial_expert(model, layer, e, 3) for layer, e in wanted}
    torch.manual_seed(random.randrange(1000))
    torch.rand(17)  # another state of the global generator, another order, another model object
    model = meta_model(toy_config(family))
    for layer, e in reversed(wanted):
        again = initial_expert(model, layer, e, 3)
        for name, value in in_order[layer.name, e].items():
            assert torch.equal(again[name], value)
    for name, value in initial_dense(model, layers, 3):
        assert torch.equal(first[name], value), name


def test_initial_values_leave_the_global_generator_alone(family):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    initial_values(family)
    assert torch.equal(torch.rand(3), expected)


def test_another_seed_layer_expert_or_module_gives_other_values(family):
    ours, other = initial_values(family, seed=3), initial_values(family, seed=4)
    names = [name for name, value in ours.items() if value.std() > 0 and "inv_freq" not in name]
    assert len(names) > 10
    for name in names:
        assert not torch.equal(ours[name], other[name]), name
    by_shape: dict[torch.Size, list[torch.Tensor]] = {}
    for name in names:
        rows = ours[name] if ".experts." in name and ours[name].ndim == 3 else ours[name][None]
        for row in rows:
            for twin in by_shape.setdefault(row.shape, []):
                assert not torch.equal(row, twin), name
            by_shape[row.shape].append(row)


def test_one_expert_has_the_shapes_of_its_layout(family):
    model = meta_model(toy_config(family))
    layer = find_moe_layers(model)[0]
    expert = initial_expert(model, layer, 1, 0)
    assert {name: tuple(value.shape) for name, value in expert.items()} == {
        tensor.name: tensor.shape for tensor in layer.layout.tensors
    }


def test_tied_embeddings_are_given_once():
    model = meta_model(toy_config("qwen3_moe", tie_word_embeddings=True))
    names = [name for name, _ in initial_dense(model, find_moe_layers(model), 0)]
    assert len(names) == len(set(names))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
