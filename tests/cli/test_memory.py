"""``hecate memory`` as a user runs it."""

from pathlib import Path

import pytest

from hecate.cli.app import main

CONFIGS = Path(__file__).parents[2] / "configs" / "train"


def in_all(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    assert main(["memory", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line[:12].strip(): line[12:24].strip() for line in lines[1:]}


def test_a_model_for_many_gpus_is_sized_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Qwen3-30B-A3B with two layers of its 48: by hand, of 64 ranks each owns two experts."""
    words = [str(CONFIGS / "qwen3-30b-a3b.yaml"), "--ranks", "64", "--device", "cuda"]
    rows = in_all(capsys, *words, "--set", "model.sizes.num_hidden_layers=2")
    expert = 3 * 2048 * 768
    attention = 2048 * 128 * (32 + 4 + 4 + 32) + 2 * 128 + 2 * 2048 + 2048 * 128
    dense = 2 * attention + 2 * 151936 * 2048 + 2048
    own = 2 * 2 * expert + -(-dense // 64)
    assert rows["gradients"] == f"{4 * own / 2**30:.2f} GiB"
    assert rows["optimizer"] == f"{8 * own / 2**30:.2f} GiB"
    assert rows["parameters"] == f"{(4 * own + 2 * 2 * 2 * expert) / 2**30:.2f} GiB"
    assert rows["process"] == rows["checkpoint"] == "0.0 MiB", "the device's memory alone"
    assert float(rows["in all"].split()[0]) > 0


def test_more_ranks_take_less_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    demo = str(CONFIGS / "demo.yaml")
    alone, shared = in_all(capsys, demo), in_all(capsys, demo, "--ranks", "4")
    assert alone["copies"] == "0.0 MiB" and shared["copies"] != "0.0 MiB"
    for part in ("optimizer", "activations", "in all"):
        assert float(shared[part].split()[0]) < 1024 * float(alone[part].split()[0]), part


def test_what_cannot_be_configured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", str(CONFIGS / "demo.yaml"), "--set", "train.stesp=3"]) == 2
    assert "train.steps" in capsys.readouterr().err
