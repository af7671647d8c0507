"""The benchmark's models, and that all contenders read the same rows and weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from toy_workload import TOY, text_file
from transformers import AutoModelForCausalLM

from hecate.bench.peers import Implementations, Job
from hecate.bench.peers.transformers_model import (
    batched_mm_bytes,
    build_model,
    decay_groups,
    describe_trial,
    expert_candidates,
    fastest,
)
from hecate.bench.workloads import (
    DEMO,
    ONE_PROCESS,
    QWEN3_MOE_108M,
    read_batches,
    write_batches,
    write_weights,
)
from hecate.config import load_config
from hecate.data import DataConfig
from hecate.data.progress import quiet
from hecate.models.build import hf_config
from hecate.train.config import RunConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "train"


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batches")
    data = DataConfig(path=str(text_file(folder)), cache=str(folder / "cache"))
    return write_batches(TOY, 3, data=data, seed=1, folder=folder, progress=quiet)


def test_the_demo_is_the_one_of_its_configuration() -> None:
    config = load_config(RunConfig, CONFIGS / "demo.yaml").value
    assert config.model == DEMO.model
    assert config.data.sequence_tokens == DEMO.sequence_tokens
    assert config.data.tokenizer.vocab_size == DEMO.vocab_size
    assert config.train.batch_sequences == DEMO.batch_sequences


def test_the_larger_model_has_108_million_parameters() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            hf_config(QWEN3_MOE_108M.model, vocab_size=QWEN3_MOE_108M.vocab_size)
        )
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 109


def test_ranks_share_each_step_of_one_process(batches: Path) -> None:
    (whole, *_), parts = (
        read_batches(batches, 0, 1),
        [read_batches(batches, r, 3) for r in range(3)],
    )
    for name in ("input_ids", "labels", "position_ids"):
        joined = torch.cat([getattr(part[0], name) for part in parts])
        assert torch.equal(joined, getattr(whole, name))
    assert whole.input_ids.shape == (TOY.batch_sequences, TOY.sequence_tokens)
    assert whole.step_labels == int((whole.labels != -100).sum())
    assert {part[0].step_labels for part in parts} == {whole.step_labels}
    assert (whole.position_ids == 0).sum() > TOY.batch_sequences, "no document ends in a row"


def test_peers_begin_with_the_written_weights(tmp_path: Path, batches: Path) -> None:
    weights = write_weights(TOY, seed=1, folder=tmp_path)
    job = Job(TOY, ONE_PROCESS, 3, "float32", 1, batches, weights)
    one, same = (build_model(job, Implementations("sdpa", "eager")) for _ in range(2))
    other = build_model(
        Job(
            TOY, ONE_PROCESS, 3, "float32", 1, batches, write_weights(TOY, seed=2, folder=tmp_path)
        ),
        Implementations("sdpa", "eager"),
    )
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    differing = [
        name
        for name, value in one.state_dict().items()
        if not torch.equal(value, other.state_dict()[name])
    ]
    assert "model.layers.0.mlp.experts.down_proj" in differing
    assert "model.embed_tokens.weight" in differing


def test_vectors_do_not_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    matrices, vectors = decay_groups(model, 0.1)
    assert [p.ndim for p in matrices["params"]] == [2]
    assert [p.ndim for p in vectors["params"]] == [1, 1, 1]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)


def test_batched_mm_is_tried_only_where_its_copies_are_small(tmp_path: Path) -> None:
    small = Job(TOY, ONE_PROCESS, 1, "float32", 1, tmp_path, tmp_path)
    large = Job(DEMO, ONE_PROCESS, 1, "float32", 1, tmp_path, tmp_path)
    assert batched_mm_bytes(DEMO, 4096) == 4096 * 2 * 2 * 256 * 256 * 4
    assert expert_candidates(small) == ("eager", "grouped_mm", "batched_mm")
    assert expert_candidates(large) == ("eager", "grouped_mm")


def test_what_fails_is_never_chosen() -> None:
    seconds = {"eager": 0.25, "grouped_mm": math.inf, "batched_mm": 0.5}
    assert fastest(seconds) == "eager"
    assert describe_trial(seconds) == "eager 0.25 s, grouped_mm fails, batched_mm 0.50 s"
    with pytest.raises(RuntimeError, match="none of grouped_mm runs here"):
        fastest({"grouped_mm": math.inf})
