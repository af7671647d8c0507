"""A folder written in pieces equals the one that ``save_pretrained`` writes of the whole model."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_models import FAMILIES, OTHER_LAYOUTS, meta_model, toy_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from hecate.errors import ModelError
from hecate.models.families import MoELayer, find_moe_layers
from hecate.models.hub import HubFolder, dense_names, write_hub_folder

IDS = torch.tensor([[5, 17, 33, 99, 2, 64, 7, 8]])


class Pieces:
    """A model in memory, given out as a checkpoint would give it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = meta_model(model.config)
        self.layers = find_moe_layers(self.model)
        self._tensors = model.state_dict()
        self.experts_alive: list[int] = []
        self._given: list[weakref.ref[torch.Tensor]] = []

    def dense(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name in dense_names(self.model, self.layers):
            yield name, self._tensors[name].clone()

    def expert(self, layer: MoELayer, expert_id: int) -> dict[str, torch.Tensor]:
        self.experts_alive.append(sum(ref() is not None for ref in self._given))
        tensors = {
            part.name: self._tensors[f"{layer.name}.{part.name}"][expert_id].clone()
            for part in layer.layout.tensors
        }
        self._given = [weakref.ref(tensor) for tensor in tensors.values()]
        return tensors

    def write(
        self,
        out: Path,
        dtype: torch.dtype = torch.float32,
        *,
        tokenizer_folder: Path | None = None,
        shard_bytes: int = 10**9,
    ) -> None:
        write_hub_folder(
            out,
            self.model,
            self.layers,
            dense=self.dense(),
            expert=self.expert,
            dtype=dtype,
            tokenizer_folder=tokenizer_folder,
            shard_bytes=shard_bytes,
        )


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("family", [*FAMILIES, *OTHER_LAYOUTS])
def test_equals_save_pretrained(family: str, tmp_path: Path) -> None:
    model = toy_model(family)
    model.save_pretrained(tmp_path / "whole")
    Pieces(model).write(tmp_path / "out")
    written, expected = all_tensors(tmp_path / "out"), all_tensors(tmp_path / "whole")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(reloaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_keeps_what_the_family_keeps_in_float32(family: str, tmp_path: Path) -> None:
    model = toy_model(family)
    model.save_pretrained(tmp_path / "whole")
    Pieces(model).write(tmp_path / "out", torch.bfloat16)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")  # the dtype is config.json's
    assert reloaded.dtype == torch.bfloat16
    for name, tensor in expected.state_dict().items():
        other = reloaded.state_dict()[name]
        assert other.dtype == tensor.dtype and torch.equal(other, tensor), name
    hub = HubFolder(tmp_path / "out", meta_model(model.config), find_moe_layers(model))
    for name, tensor in hub.dense():
        assert tensor.dtype == expected.state_dict()[name].dtype, name


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_files_stay_within_the_shard_size(family: str, tmp_path: Path) -> None:
    model = toy_model(family)
    Pieces(model).write(tmp_path / "out", shard_bytes=60_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    sizes = []
    for name in files:
        tensors = load_file(tmp_path / "out" / name).values()
        sizes.append(sum(tensor.numel() * 4 for tensor in tensors))
        assert sizes[-1] <= 60_000 or len(tensors) == 1
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(reloaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_expert_at_a_time(family: str, tmp_path: Path) -> None:
    pieces = Pieces(toy_model(family))
    pieces.write(tmp_path / "out", shard_bytes=60_000)
    assert len(pieces.experts_alive) == sum(layer.num_experts for layer in pieces.layers)
    held = len(pieces.layers[0].layout.tensors)
    assert max(pieces.experts_alive) <= held  # the last one given, until the next is asked for


def test_tied_embeddings_are_written_once(tmp_path: Path) -> None:
    model = toy_model("qwen3_moe", tie_word_embeddings=True)
    Pieces(model).write(tmp_path / "out")
    assert "lm_head.weight" not in all_tensors(tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(reloaded(IDS).logits, model(IDS).logits)


def test_configuration_says_what_serving_engines_read(tmp_path: Path) -> None:
    model = toy_model("deepseek_v3")
    model.config.quantization_config = {"quant_method": "fp8"}  # of the folder that it came from
    Pieces(model).write(tmp_path / "out", torch.bfloat16)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    assert (config["dtype"], config["vocab_size"]) == ("bfloat16", 128)
    assert (config["topk_method"], config["scoring_func"]) == ("noaux_tc", "sigmoid")
    assert "quantization_config" not in config
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 1


def test_copies_the_tokenizer_and_nothing_beside_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt"]
    foreign = ["config.json", "model.safetensors", "model.safetensors.index.json", "notes.pdf"]
    for name in [*names, *foreign]:
        (source / name).write_text(f'"{name} of the source"')
    Pieces(toy_model("mixtral")).write(tmp_path / "out", tokenizer_folder=source)
    for name in names:
        assert (tmp_path / "out" / name).read_text() == f'"{name} of the source"'
    assert "source" not in (tmp_path / "out" / "config.json").read_text()
    assert not (tmp_path / "out" / "notes.pdf").exists()
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_a_model_with_a_tensor_missing_is_not_written(tmp_path: Path) -> None:
    pieces = Pieces(toy_model("mixtral"))
    dense = [pair for pair in pieces.dense() if pair[0] != "model.norm.weight"]
    pieces.dense = lambda: iter(dense)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"lacks model.norm.weight"):
        pieces.write(tmp_path / "out")
    pieces.dense = lambda: iter([*dense, dense[0]])  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"came twice"):
        pieces.write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
