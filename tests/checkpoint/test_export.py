"""From a checkpoint, saved by any number of ranks, to a folder that transformers loads."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.distributed import HashStore
from toy_models import FAMILIES, toy_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from collectives.placement import Placement
from hecate.checkpoint.export import CheckpointWeights, export_run, require_equal
from hecate.checkpoint.names import dense_key, expert_key
from hecate.checkpoint.store import CheckpointStore
from hecate.errors import CheckpointError, StorageError
from hecate.mesh import MeshConfig, ParallelContext, Rendezvous, open_mesh
from hecate.models.families import find_moe_layers
from hecate.models.hub import dense_names

IDS = torch.tensor([[5, 17, 33, 99, 2, 64, 7, 8]])


def save_checkpoints(
    ctx: ParallelContext, folder: Path, family: str, steps: tuple[int, ...], meta: dict[str, Any]
) -> None:
    """As training does: each rank saves the experts that it owns, and both the dense tensors."""
    store = CheckpointStore(folder, group=ctx.groups.checkpoint, rank=ctx.rank, keep=0)
    for step in steps:
        model = toy_model(family, seed=step)
        tensors, layers = model.state_dict(), find_moe_layers(model)
        state = {dense_key(name): tensors[name] for name in dense_names(model, layers)}
        for layer in layers:
            owned = Placement.even(layer.num_experts, ctx.world_size).chunks_on(ctx.rank)
            for expert_id in owned:
                parts = [tensors[f"{layer.name}.{t.name}"][expert_id] for t in layer.layout.tensors]
                chunk_C = torch.cat([part.flatten() for part in parts])
                state[expert_key(layer.name, expert_id)] = chunk_C
        hf_config = model.config.to_dict()
        store.save(step, state, {**meta, "hf_config": hf_config}, asynchronous=False)


def make_run(
    tmp_path: Path,
    family: str,
    *,
    steps: tuple[int, ...] = (1,),
    dtype: str = "float32",
    world_size: int = 1,
) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    what = (run / "checkpoints", family, steps, {"config": {"train": {"dtype": dtype}}})
    if world_size > 1:
        run_ranks(save_checkpoints, world_size, *what)
    else:
        with open_mesh(MeshConfig(device="cpu"), Rendezvous(0, 1, 0, HashStore())) as ctx:
            save_checkpoints(ctx, *what)
    vocabulary = {f"word{i}": i for i in range(128)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="word0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(run / "tokenizer")
    return run


@pytest.mark.parametrize(
    ("family", "world_size"), [*((family, 1) for family in FAMILIES), ("qwen3_moe", 3)]
)
def test_the_folder_computes_what_the_model_computed(
    family: str, world_size: int, tmp_path: Path
) -> None:
    run, out = make_run(tmp_path, family, world_size=world_size), tmp_path / "out"
    report = export_run(run, out)
    model = toy_model(family, seed=1)
    reloaded = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(reloaded(IDS).logits, model(IDS).logits)
    assert AutoTokenizer.from_pretrained(out)("word3 word5").input_ids == [3, 5]
    experts = sum(layer.num_experts * len(layer.layout.tensors) for layer in find_moe_layers(model))
    assert report.num_tensors == experts + len(dense_names(model, find_moe_layers(model)))
    assert (report.folder, report.step, report.dtype) == (out, 1, "float32")
    assert report.size_bytes == (out / "model.safetensors").stat().st_size


def test_a_step_can_be_chosen(tmp_path: Path) -> None:
    run, out = make_run(tmp_path, "mixtral", steps=(1, 2)), tmp_path / "out"
    for step, expected in ((0, 2), (1, 1), (2, 2)):
        assert export_run(run, out, step=step).step == expected
        reloaded = AutoModelForCausalLM.from_pretrained(out)
        assert torch.equal(reloaded(IDS).logits, toy_model("mixtral", seed=expected)(IDS).logits)
    with pytest.raises(CheckpointError, match="no checkpoint of step 3") as caught:
        export_run(run, out, step=3)
    assert caught.value.got == "steps 1, 2"


def test_the_dtype_is_that_of_training_unless_said(tmp_path: Path) -> None:
    run, out = make_run(tmp_path, "deepseek_v3", dtype="bfloat16"), tmp_path / "out"
    assert export_run(run, out).dtype == "bfloat16"
    tensors = load_file(out / "model.safetensors")
    bias = tensors.pop("model.layers.1.mlp.gate.e_score_correction_bias")
    model = toy_model("deepseek_v3", seed=1)
    assert torch.equal(bias, model.model.layers[1].mlp.gate.e_score_correction_bias)
    assert tensors["model.layers.1.mlp.experts.0.up_proj.weight"].dtype == torch.bfloat16
    assert export_run(run, out, dtype="float32").dtype == "float32"
    reloaded = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(reloaded(IDS).logits, model(IDS).logits)


def test_the_configuration_does_not_tell_of_the_trainer(tmp_path: Path) -> None:
    run, out = make_run(tmp_path, "qwen3_moe"), tmp_path / "out"
    export_run(run, out)
    text = (out / "config.json").read_text()
    assert json.loads(text)["model_type"] == "qwen3_moe"
    assert "hecate" not in text and "packed" not in text


def test_a_changed_weight_is_found(tmp_path: Path) -> None:
    run, out = make_run(tmp_path, "qwen3_moe"), tmp_path / "out"
    report = export_run(run, out)
    weights = CheckpointWeights.of_run(run)
    assert require_equal(out, weights, torch.float32) == report.num_tensors
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.1.mlp.experts.3.up_proj.weight"][0, 0] += 1
    (out / "model.safetensors").unlink()
    save_file(tensors, out / "model.safetensors")
    with pytest.raises(StorageError, match=r"model.layers.1.mlp.experts.gate_up_proj\[3\] differs"):
        require_equal(out, weights, torch.float32)


def test_a_disk_that_takes_no_more_leaves_nothing(tmp_path: Path) -> None:
    run, out = make_run(tmp_path, "mixtral"), tmp_path / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="File too large"):
            export_run(run, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        export_run(tmp_path / "nowhere", tmp_path / "out")


def test_a_run_without_tokenizer_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mixtral")
    (run / "tokenizer").rename(run / "elsewhere")
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        export_run(run, tmp_path / "out")
