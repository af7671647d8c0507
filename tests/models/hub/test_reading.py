"""A folder that ``save_pretrained`` wrote, read back a tensor and an expert at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_models import FAMILIES, OTHER_LAYOUTS, meta_model, toy_model
from transformers import AutoConfig, AutoModelForCausalLM, Mxfp4Config, PreTrainedModel

from hecate.errors import ModelError
from hecate.models.families import MoELayer, find_moe_layers
from hecate.models.hub import HubFolder
from hecate.models.hub.tensor_files import TensorFile, TensorSlice, open_safetensors


def open_folder(folder: Path, **options: Any) -> tuple[HubFolder, tuple[MoELayer, ...]]:
    model = meta_model(AutoConfig.from_pretrained(folder))
    layers = find_moe_layers(model)
    return HubFolder(folder, model, layers, **options), layers


def assert_reads(folder: Path, model: PreTrainedModel) -> None:
    """Every tensor of ``model`` comes out of ``folder`` bit for bit, each once.

    Read as training does: between opening and reading, the experts leave the model.
    """
    shapes = meta_model(AutoConfig.from_pretrained(folder))
    layers = find_moe_layers(shapes)
    hub = HubFolder(folder, shapes, layers)
    for layer in layers:
        for part in layer.layout.tensors:
            delattr(shapes.get_submodule(layer.name), part.name)
    expected = model.state_dict()
    left = set(expected) - set(model.all_tied_weights_keys)
    for name, tensor in hub.dense():
        assert torch.equal(tensor, expected[name]), name
        left.remove(name)
    for layer in layers:
        for expert_id in range(layer.num_experts):
            for part, tensor in hub.expert(layer, expert_id).items():
                assert torch.equal(tensor, expected[f"{layer.name}.{part}"][expert_id]), part
        left -= {f"{layer.name}.{part.name}" for part in layer.layout.tensors}
    assert not left


class Meter:
    """Opens safetensors files and counts the bytes of what is read from them."""

    def __init__(self) -> None:
        self.read_bytes = 0

    def __call__(self, path: Path) -> TensorFile:
        return MeteredFile(open_safetensors(path), self)


class MeteredFile:
    def __init__(self, file: TensorFile, meter: Meter) -> None:
        self.keys = file.keys
        self._file = file
        self._meter = meter

    def get_slice(self, name: str) -> TensorSlice:
        return MeteredSlice(self._file.get_slice(name), self._meter)


class MeteredSlice:
    def __init__(self, part: TensorSlice, meter: Meter) -> None:
        self.get_shape = part.get_shape
        self._part = part
        self._meter = meter

    def __getitem__(self, index: Any) -> torch.Tensor:
        tensor = self._part[index]
        self._meter.read_bytes += tensor.numel() * tensor.element_size()
        return tensor


@pytest.mark.parametrize("family", [*FAMILIES, *OTHER_LAYOUTS])
def test_reads_every_tensor_bit_for_bit(family: str, tmp_path: Path) -> None:
    model = toy_model(family)
    model.save_pretrained(tmp_path / "single")
    assert_reads(tmp_path / "single", model)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    assert_reads(tmp_path / "sharded", model)


@pytest.mark.parametrize("family", FAMILIES)
def test_reads_only_the_experts_own_bytes(family: str, tmp_path: Path) -> None:
    toy_model(family).save_pretrained(tmp_path)
    meter = Meter()
    hub, layers = open_folder(tmp_path, opener=meter)
    assert meter.read_bytes == 0
    for layer in layers:
        for expert_id in (layer.num_experts - 1, 0):
            meter.read_bytes = 0
            hub.expert(layer, expert_id)
            assert meter.read_bytes == 4 * layer.layout.numel


def test_experts_that_are_converted_together_are_read_once_a_layer(tmp_path: Path) -> None:
    toy_model("inkling2_loop_text").save_pretrained(tmp_path)
    meter = Meter()
    hub, layers = open_folder(tmp_path, opener=meter)
    for expert_id in range(layers[0].num_experts):
        hub.expert(layers[0], expert_id)
    assert meter.read_bytes == 4 * layers[0].layout.numel * layers[0].num_experts


def test_keeps_the_folders_dtype(tmp_path: Path) -> None:
    toy_model("mixtral", dtype=torch.bfloat16).save_pretrained(tmp_path)
    hub, layers = open_folder(tmp_path)
    assert {tensor.dtype for _, tensor in hub.dense()} == {torch.bfloat16}
    assert hub.expert(layers[0], 0)["down_proj"].dtype == torch.bfloat16


def test_reads_a_stacked_folder_of_a_per_expert_family(tmp_path: Path) -> None:
    model = toy_model("qwen3_moe")
    model.save_pretrained(tmp_path, save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(tmp_path / "model.safetensors")
    assert_reads(tmp_path, model)


def test_more_than_ten_experts_are_read_in_numerical_order(tmp_path: Path) -> None:
    model = toy_model("olmoe", num_experts=12)
    model.save_pretrained(tmp_path)
    assert_reads(tmp_path, model)


# Tied weights and prefixes


def test_tied_embeddings_come_once(tmp_path: Path) -> None:
    model = toy_model("qwen3_moe", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert_reads(tmp_path, model)


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a folder with one file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def test_tied_embeddings_under_the_other_name(tmp_path: Path) -> None:
    model = toy_model("qwen3_moe", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    assert_reads(tmp_path, model)


def test_tied_embeddings_under_both_names(tmp_path: Path) -> None:
    model = toy_model("qwen3_moe", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    embeddings = model.get_input_embeddings().weight.detach()
    edit(tmp_path, lambda t: t.update({"lm_head.weight": embeddings.clone()}))
    assert_reads(tmp_path, model)
    edit(tmp_path, lambda t: t.update({"lm_head.weight": embeddings + 1}))
    with pytest.raises(ModelError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        dict(open_folder(tmp_path)[0].dense())


def test_a_base_models_folder_without_the_prefix(tmp_path: Path) -> None:
    model = toy_model("mixtral", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    edit(
        tmp_path,
        lambda t: [t.update({name.removeprefix("model."): t.pop(name)}) for name in list(t)],
    )
    assert_reads(tmp_path, model)


def test_the_families_exceptions_are_ignored(tmp_path: Path) -> None:
    model = toy_model("deepseek_v3")
    model.save_pretrained(tmp_path)
    extra = {"model.layers.61.shared_head.norm.weight": torch.ones(4)}
    edit(tmp_path, lambda t: t.update(extra))
    assert_reads(tmp_path, model)


# Quantised folders


def quantise_to_mxfp4(folder: Path) -> None:
    """Replace the experts of a gpt-oss folder by random MXFP4 blocks, as its hub folders have."""
    generator = torch.Generator().manual_seed(0)

    def pack(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
            experts, rows, columns = tensors.pop(name).shape
            blocks = (experts, columns, rows // 32)
            tensors[name + "_blocks"] = torch.randint(
                256, (*blocks, 16), dtype=torch.uint8, generator=generator
            )
            tensors[name + "_scales"] = torch.randint(
                118, 124, blocks, dtype=torch.uint8, generator=generator
            )

    edit(folder, pack)
    say_quantised(folder, "mxfp4")


def say_quantised(folder: Path, method: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {"quant_method": method, "modules_to_not_convert": ["lm_head"]}
    path.write_text(json.dumps(config))


def test_mxfp4_is_dequantised_expert_by_expert(tmp_path: Path) -> None:
    toy_model("gpt_oss").save_pretrained(tmp_path)
    quantise_to_mxfp4(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.float32
    )
    assert_reads(tmp_path, reference)
    meter = Meter()
    hub, layers = open_folder(tmp_path, opener=meter)
    hub.expert(layers[0], 1)
    weights = sum(t.numel for t in layers[0].layout.tensors if not t.name.endswith("bias"))
    biases = layers[0].layout.numel - weights
    assert meter.read_bytes == weights // 2 + weights // 32 + 4 * biases


def test_other_quantisation_is_refused_by_name(tmp_path: Path) -> None:
    toy_model("mixtral").save_pretrained(tmp_path)
    say_quantised(tmp_path, "gptq")
    model = toy_model("mixtral")
    with pytest.raises(ModelError, match=r"quantised \(gptq\)"):
        HubFolder(tmp_path, model, find_moe_layers(model))


# Folders that cannot be read


def sharded(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of several files, and one of them that holds experts of layer 1."""
    toy_model("qwen3_moe").save_pretrained(tmp_path, max_shard_size="50KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    return tmp_path, tmp_path / index["weight_map"]["model.layers.1.mlp.experts.3.up_proj.weight"]


def message(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        hub, layers = open_folder(folder)
        dict(hub.dense())
        for layer in layers:
            for expert_id in range(layer.num_experts):
                hub.expert(layer, expert_id)
    return str(caught.value)


def test_a_cut_file_is_named_with_the_tensor_it_ends_in(tmp_path: Path) -> None:
    folder, path = sharded(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    text = message(folder)
    assert path.name in text and "model.layers.1." in text and "cut" in text
    path.write_bytes(content[:20])
    assert path.name in message(folder)
    path.write_bytes(b"")
    assert path.name in message(folder)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder, path = sharded(tmp_path)
    path.unlink()
    assert f"{path} is missing" in message(folder)


def test_a_file_without_a_listed_tensor_is_named(tmp_path: Path) -> None:
    folder, path = sharded(tmp_path)
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    path.unlink()
    save_file(tensors, path)
    assert f"{path} lacks tensor model.layers.1.mlp.experts.3.up_proj.weight" in message(folder)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwen3_moe", "model.layers.1.mlp.experts.3.up_proj.weight"),
        ("qwen3_moe", "model.layers.0.mlp.gate.weight"),
        ("qwen3_moe", "lm_head.weight"),
        ("deepseek_v3", "model.layers.2.mlp.gate.e_score_correction_bias"),
        ("gpt_oss", "model.layers.1.mlp.experts.down_proj_bias"),
    ],
)
def test_a_missing_tensor_is_named(family: str, name: str, tmp_path: Path) -> None:
    toy_model(family).save_pretrained(tmp_path)
    edit(tmp_path, lambda t: t.pop(name))
    text = message(tmp_path)
    assert str(tmp_path / "model.safetensors") in text and name in text


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwen3_moe", "model.layers.1.mlp.experts.3.up_proj.weight"),
        ("qwen3_moe", "model.norm.weight"),
        ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj"),
    ],
)
def test_a_wrong_shape_is_named(family: str, name: str, tmp_path: Path) -> None:
    toy_model(family).save_pretrained(tmp_path)
    edit(tmp_path, lambda t: t.update({name: t[name][:-1].clone()}))
    text = message(tmp_path)
    assert f"{tmp_path / 'model.safetensors'}: {name}" in text


def test_weights_of_other_sizes_are_refused(tmp_path: Path) -> None:
    toy_model("mixtral").save_pretrained(tmp_path)
    toy_model("mixtral", intermediate_size=64).config.save_pretrained(tmp_path)
    assert "experts.0.w1.weight" in message(tmp_path)
    toy_model("mixtral", num_local_experts=3).config.save_pretrained(tmp_path)
    assert "(3, 64)" in message(tmp_path)


def test_a_tensor_of_another_model_is_named(tmp_path: Path) -> None:
    toy_model("mixtral").save_pretrained(tmp_path)
    edit(tmp_path, lambda t: t.update({"model.layers.9.mlp.gate.weight": torch.ones(1)}))
    assert "holds model.layers.9.mlp.gate.weight" in message(tmp_path)


def test_pickles_are_refused_by_name(tmp_path: Path) -> None:
    toy_model("mixtral").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    text = message(tmp_path)
    assert "pytorch_model.bin" in text and "save_pretrained" in text


def test_an_index_that_is_no_index_is_named(tmp_path: Path) -> None:
    folder, _ = sharded(tmp_path)
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": ')
    assert str(index) in message(folder)


def test_a_folder_without_configuration_is_named(tmp_path: Path) -> None:
    model = toy_model("mixtral")
    model.save_pretrained(tmp_path / "whole")
    shutil.copy(tmp_path / "whole" / "model.safetensors", tmp_path)
    with pytest.raises(ModelError, match=r"config.json cannot be read"):
        HubFolder(tmp_path, model, find_moe_layers(model))
