"""``hecate eval`` after ``hecate train``, of a family whose head does more than project."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs import TOY, json_lines, succeed, write_config, write_corpus


def test_a_checkpoint_is_evaluated_with_the_loss_that_it_was_trained_with(tmp_path: Path) -> None:
    """Granite divides its logits by ``logits_scaling``: a fused loss would be far off."""
    write_corpus(tmp_path / "corpus")
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "logits_scaling": 16.0,
        "initializer_range": 0.2,
    }
    config = TOY | {"model": {"family": "granitemoe", "sizes": sizes}}
    write_config(tmp_path / "toy.yaml", config)
    succeed("train", "toy.yaml", cwd=tmp_path)
    run = tmp_path / "runs" / "toy"
    trained = json_lines(run / "metrics.jsonl")[-1]["eval/loss"]
    printed = dict(line.split() for line in succeed("eval", run, cwd=tmp_path).splitlines())
    assert float(printed["loss"]) == pytest.approx(trained, rel=1e-5)
