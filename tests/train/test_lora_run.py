"""A LoRA run from the command's configuration to a folder that PEFT loads, resumed on the way."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from jobs import metrics, write_corpus
from lora import load_peft, write_base
from ranks import RankError, run_ranks
from transformers import AutoModelForCausalLM

from hecate.checkpoint.export import export_run
from hecate.checkpoint.reader import CheckpointReader
from hecate.errors import CheckpointError
from hecate.mesh import ParallelContext
from hecate.train.config import RunConfig
from hecate.train.run import train

pytestmark = pytest.mark.slow
STOP, STEPS = 2, 4


def config_of(folder: Path, name: str) -> RunConfig:
    return RunConfig(
        name=name,
        folder=str(folder / "runs"),
        seed=5,
        model={"path": str(folder / "base")},
        lora={"rank": 2, "alpha": 8},
        data={
            "path": str(folder / "corpus"),
            "cache": str(folder / "cache"),
            "sequence_tokens": 24,
            "tokenizer": {"vocab_size": 280},
        },
        experts={"costs": {"slot_s": 1.0, "copy_s": 1e-6}, "fssdp": {"reshard_every": 2}},
        router={"balance_loss": 0.01},
        train={"steps": STEPS, "batch_sequences": 5},
        optimizer={"learning_rate": 1e-2},
        checkpoint={"every": STOP, "keep": 0},
        logging={"every": 1, "sinks": ["jsonl"]},
    )


def train_on_rank(ctx: ParallelContext, config: RunConfig, resume: str) -> float:
    return train(config, origins={}, resume=resume).held_out["loss"]


@dataclass
class Trained:
    folder: Path
    run: Path
    held_out: float


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("lora")
    write_base(folder / "base", "qwen3_moe", vocab_size=280)
    write_corpus(folder / "corpus", files=4)
    held_out = run_ranks(train_on_rank, 2, config_of(folder, "straight"), "none")[0]
    return Trained(folder, folder / "runs" / "straight", held_out)


def stopped(trained: Trained, name: str) -> Path:
    run = trained.run.parent / name
    shutil.copytree(trained.run, run)
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    return run


def final_state(run: Path) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(run / "checkpoints" / f"step-{STEPS:08d}")
    return {key: reader.tensor(key) for key in reader.keys()}


def test_checkpoints_hold_adapters_and_nothing_of_the_model(trained: Trained) -> None:
    state = final_state(trained.run)
    dense = [key for key in state if key.startswith("dense/")]
    assert dense and all(".lora_A." in key or ".lora_B." in key for key in dense)
    experts = {key: t for key, t in state.items() if key.startswith("expert/")}
    # each of 2 layers' 6 experts: up [2 * 32, 64] and down [64, 32] at rank 2
    assert {t.numel() for t in experts.values()} == {2 * (64 + 64) + 2 * (32 + 64)}
    assert len(experts) == 12
    adapter = json.loads((trained.run / "adapter" / "adapter_config.json").read_text())
    assert adapter["target_parameters"] == [
        f"model.layers.{layer}.mlp.experts.{name}"
        for layer in range(2)
        for name in ("gate_up_proj", "down_proj")
    ]


def test_peft_and_the_merged_export_answer_alike(trained: Trained) -> None:
    """Both have learnt, and both give the loss that the run itself measured."""
    export_run(trained.run, trained.folder / "merged", merge=True)
    ids = torch.randint(2, 280, (3, 24), generator=torch.Generator().manual_seed(1))
    base, merged = (
        AutoModelForCausalLM.from_pretrained(trained.folder / name, dtype=torch.float32).eval()
        for name in ("base", "merged")
    )
    peft = load_peft(trained.folder / "base", trained.run / "adapter", torch.float32).eval()
    with torch.no_grad():
        plain, ours, theirs = (m(input_ids=ids).logits for m in (base, merged, peft))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (plain - theirs).abs().max() > 0.05
    lines = metrics(trained.run)
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_stopped_run_goes_on(trained: Trained, world_size: int) -> None:
    run = stopped(trained, f"stopped-{world_size}")
    config = config_of(trained.folder, run.name)
    held_out = run_ranks(train_on_rank, world_size, config, "auto")[0]
    assert held_out == pytest.approx(trained.held_out, rel=0 if world_size == 2 else 1e-4)
    ours, theirs = final_state(run), final_state(trained.run)
    for key, tensor in theirs.items():
        if world_size == 2:
            assert torch.equal(ours[key], tensor), key
        elif not key.startswith("rng/"):
            torch.testing.assert_close(ours[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


def test_another_base_and_a_damaged_checkpoint_are_refused(trained: Trained) -> None:
    damaged = stopped(trained, "damaged")
    file = next((damaged / "checkpoints" / f"step-{STOP:08d}").glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=file.name):
        export_run(damaged, trained.folder / "of-damaged")
    other = trained.folder / "other"
    write_base(other, "qwen3_moe", vocab_size=280, hidden_size=64)
    weights = next(other.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    run = stopped(trained, "other-base")
    settings = config_of(trained.folder, run.name).model_dump(mode="json")
    settings["model"]["path"] = str(other)
    config = RunConfig.model_validate(settings)
    with pytest.raises(RankError, match="belong to another model"):
        run_ranks(train_on_rank, 1, config, "auto")
