"""Folders that PEFT and Hecate write, and folders that are wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lora import load_peft
from peft_adapters import ATTENTION, EXPERTS, MLP, save_adapter
from safetensors.torch import load_file, save_file
from served import served_model
from toy_models import toy_model
from transformers import PreTrainedModel

from hecate.models.families import find_moe_layers
from hecate.models.lora import LoraConfig, adapted_layers
from hecate.models.lora import peft_format as peft
from serving.errors import InvalidAdapter
from serving.lora.adapters import Adapter
from serving.lora.peft_folder import digest_of, read_adapter
from serving.lora.targets import find_targets


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return served_model("qwen3_moe")


def read(folder: Path, model: PreTrainedModel, max_rank: int = 16) -> Adapter:
    return read_adapter(folder, find_targets(model), max_rank=max_rank, dtype=torch.float32)


def test_scaling_follows_rank_and_patterns(model: PreTrainedModel, tmp_path: Path) -> None:
    """alpha / r, per target where patterns say so: q 8 / 2 = 4, v 6 / 4 = 1.5."""
    folder = save_adapter(
        tmp_path,
        model,
        rank=4,
        modules=("q_proj", "v_proj"),
        rank_pattern={"q_proj": 2},
        alpha_pattern={"v_proj": 6},
    )
    adapter = read(folder, model)
    raw = load_file(folder / "adapter_model.safetensors")
    path = "model.layers.1.self_attn"
    for name, rank, scaling in (("q_proj", 2, 4.0), ("v_proj", 4, 1.5)):
        change = adapter.changes[f"{path}.{name}"]
        key = f"base_model.model.{path}.{name}.lora_"
        assert change.rank == rank
        assert torch.equal(change.a_ErI[0], raw[f"{key}A.weight"])
        assert torch.equal(change.b_ErO[0], (raw[f"{key}B.weight"] * scaling).t())
    assert adapter.rank == 4


def test_rslora_divides_by_the_root(model: PreTrainedModel, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path, model, rank=4, modules=("q_proj",), use_rslora=True)
    raw = load_file(folder / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    expected = raw[f"base_model.model.{name}.lora_B.weight"].t() * (8 / 2)
    assert torch.equal(read(folder, model).changes[name].b_ErO[0], expected)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_what_hecate_writes_is_read_as_it_was_trained(family: str, tmp_path: Path) -> None:
    """Its own names and layouts; each expert's halves come back as they were put in."""
    model = toy_model(family, seed=1)
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig.model_validate({"rank": 3, "alpha": 6, "targets": ["experts"]})
    layers = adapted_layers(model, find_moe_layers(model), config)
    torch.manual_seed(0)
    tensors, given = {}, {}
    for layer in layers:
        shapes = {tensor.name: tensor.shape for tensor in layer.layout.tensors}
        for projection, half in peft.halves(layer):
            shape = shapes[f"{projection}.{half}"]
            each = [torch.randn(shape) for _ in range(layer.num_experts)]
            given[f"{layer.name}.{projection}", half] = each
            key = peft.expert_key(layer, projection, half)
            tensors[key] = peft.stacked(half, each).contiguous()
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = peft.adapter_config(config, str(tmp_path / "base"), [], layers)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    load_peft(tmp_path / "base", folder, torch.float32)  # PEFT misses nothing in it
    changes = read_adapter(folder, find_targets(model), max_rank=4, dtype=torch.float32).changes
    assert len(changes) == 2 * len(layers)
    for (name, half), each in given.items():
        for expert, tensor in enumerate(each):
            change = changes[name]
            found = change.a_ErI[expert] if half == "lora_A" else change.b_ErO[expert].t() / 2
            assert torch.equal(found, tensor)


def test_identity_is_the_content(model: PreTrainedModel, tmp_path: Path) -> None:
    one = save_adapter(tmp_path / "one", model, seed=1)
    two = save_adapter(tmp_path / "two", model, seed=2)
    shutil.copytree(one, tmp_path / "copy")
    assert digest_of(one) == digest_of(tmp_path / "copy") == read(one, model).digest
    assert digest_of(one) != digest_of(two)
    shutil.copy(two / "adapter_config.json", one)  # the same settings, as it happens
    assert digest_of(one) == digest_of(tmp_path / "copy")
    settings = json.loads((one / "adapter_config.json").read_text())
    (one / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 1}))
    assert digest_of(one) != digest_of(tmp_path / "copy")


def _settings(**changed: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return change


def _rename(old: str, new: str) -> Any:
    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file({k.replace(old, new): v for k, v in load_file(path).items()}, path)

    return change


def _drop(part: str) -> Any:
    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file({k: v for k, v in load_file(path).items() if part not in k}, path)

    return change


def _cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


WRONG = {
    "another kind": (_settings(peft_type="IA3"), "IA3"),
    "dora": (_settings(use_dora=True), "use_dora"),
    "bias": (_settings(bias="all"), "bias is not supported"),
    "whole modules": (_settings(modules_to_save=["lm_head"]), "lm_head"),
    "not a rank": (_settings(r="many"), "adapter_config.json cannot be read"),
    "another rank": (_settings(r=3), r"expected: \[3, 64\]"),
    "no settings": (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter in"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter in"),
    "half a file": (_cut, "cannot be read"),
    "half an adapter": (_drop("layers.1.self_attn.v_proj.lora_B"), "v_proj has no lora_B"),
    "nothing": (_drop("lora"), "changes nothing"),
    "no such layer": (_rename("layers.1", "layers.7"), r"layers\.7\.self_attn\.\w+ is nothing"),
    "the head": (_rename("model.layers.1.self_attn.q_proj", "lm_head"), "lm_head is nothing"),
    "no half": (_rename("lora_A", "lora_magnitude_vector"), "lora_magnitude_vector"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(wrong: str, model: PreTrainedModel, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path, model)
    read(folder, model)
    change, message = WRONG[wrong]
    change(folder)
    with pytest.raises(InvalidAdapter, match=message):
        read(folder, model)


def test_ranks_and_shapes_have_to_fit(model: PreTrainedModel, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "experts", model, modules=(), parameters=EXPERTS, rank=8)
    with pytest.raises(InvalidAdapter, match=r"rank .* too large[^$]*got: +8\n[^$]*1 to 4"):
        read(folder, model, max_rank=4)
    with pytest.raises(InvalidAdapter, match="does not fit the model"):
        read(folder, served_model("mixtral"))
    dense = save_adapter(tmp_path / "mlp", served_model("qwen3"), modules=(*ATTENTION, *MLP))
    with pytest.raises(InvalidAdapter, match=r"mlp\.\w+_proj is nothing that an adapter may"):
        read(dense, model)
