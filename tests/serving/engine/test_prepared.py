"""Prepared models are those that transformers loads, bit for bit, and lie in files alone."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from served import SERVED, save_served
from transformers import PreTrainedModel

from hecate.models.pretrained import causal_model
from serving.engine.prepared import _make_room, converted_bytes, mapped_model

MAPPED_AS_SAVED = ("qwen3", "gemma2", "gemma3_text", "gpt_oss")


def _mapped(folder: Path, dtype: torch.dtype | None = None, worth: int = 0) -> PreTrainedModel:
    return mapped_model(
        folder, dtype, digest="of-a-toy", cache=folder.parent / "cache", worth_bytes=worth
    )


def _tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Tied ones under each of their names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["as saved", "bfloat16"])
@pytest.mark.parametrize("family", SERVED)
def test_models_are_those_of_transformers(
    family: str, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save_served(folder, family)
    expected = causal_model(folder, dtype)
    for _ in ("prepared", "read again"):
        model = _mapped(folder, dtype)
        assert converted_bytes(model) == 0
        tensors, others = _tensors(model), _tensors(expected)
        assert list(tensors) == list(others)
        for name, tensor in tensors.items():
            assert tensor.dtype == others[name].dtype
            assert torch.equal(tensor, others[name]), name
        ties = [len({t.data_ptr() for t in each.values()}) for each in (tensors, others)]
        assert ties[0] == ties[1]
        assert model.training == expected.training
        assert model.config.to_diff_dict() == expected.config.to_diff_dict()
        ends = [each.generation_config.to_diff_dict() for each in (model, expected)]  # type: ignore[union-attr]
        assert ends[0] == ends[1]
    # Nothing is prepared for what is mapped as it is.
    converted = dtype is not None or family not in MAPPED_AS_SAVED
    assert (converted_bytes(expected) > 0) == converted


def test_little_is_not_worth_a_file(tmp_path: Path) -> None:
    save_served(tmp_path / "model", "qwen3_moe")
    model = _mapped(tmp_path / "model", worth=1 << 30)
    assert converted_bytes(model) > 0
    assert not (tmp_path / "cache").exists()


def _entry(cache: Path) -> Path:
    (entry,) = (path for path in cache.iterdir() if path.is_dir())
    return entry


def test_a_damaged_model_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_served(tmp_path / "model", "mixtral")
    expected = _tensors(causal_model(tmp_path / "model"))
    _mapped(tmp_path / "model")
    weights = _entry(tmp_path / "cache") / "model.safetensors"
    whole = weights.stat().st_size
    os.truncate(weights, whole - 1000)
    with caplog.at_level(logging.WARNING):
        tensors = _tensors(_mapped(tmp_path / "model"))
    assert "is damaged and made anew" in caplog.text
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    assert weights.stat().st_size == whole


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    save_served(tmp_path / "model", "mixtral")
    _mapped(tmp_path / "model")
    cache = tmp_path / "cache"
    name = _entry(cache).name
    shutil.rmtree(cache / name)
    for left in (name, "of-another-model"):
        (cache / f".{left}.partial").mkdir()
        (cache / f".{left}.partial" / "model.safetensors").write_bytes(b"half of it")
    assert converted_bytes(_mapped(tmp_path / "model")) == 0
    assert _entry(cache).name == name


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    disk = shutil.disk_usage(tmp_path)
    for age, name in enumerate(("new", "old", "older")):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            file.truncate(disk.total // 12)  # of which nothing is on the disk
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    _make_room(tmp_path / "entry", 4096)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "old"}
    with pytest.raises(OSError, match="no room for"):
        _make_room(tmp_path / "entry", disk.total // 3)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "old"}


def test_a_cache_that_cannot_be_made_leaves_the_model_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_served(tmp_path / "model", "mixtral")
    (tmp_path / "cache").touch()
    with caplog.at_level(logging.WARNING):
        model = _mapped(tmp_path / "model")
    assert converted_bytes(model) > 0
    assert "are kept in memory" in caplog.text
