"""What ``hecate serve`` is told; test_acceptance.py runs it as a user does."""

from __future__ import annotations

from pathlib import Path

import pytest
from served import save_served

from hecate.cli.serve import serving_config
from hecate.errors import ConfigError, ModelError
from serving.app.launch import cause_of

CONFIGS = Path(__file__).parents[3] / "configs" / "serve"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "toy-model"
    save_served(folder, "qwen3_moe")
    return folder


@pytest.mark.parametrize("name", ["local", "cluster"])
def test_shipped_configurations_load(name: str, folder: Path) -> None:
    config = serving_config(CONFIGS / f"{name}.yaml", [f"engine.model={folder}"])
    assert config.engine.model == str(folder) and config.engine.name == "toy-model"


def test_a_folder_and_overrides(folder: Path) -> None:
    config = serving_config(folder, ["http.port=81", "engine.name=mine"])
    assert (config.http.port, config.engine.name) == (81, "mine")
    with pytest.raises(ConfigError, match="did you mean http.port"):
        serving_config(folder, ["http.prt=81"])
    with pytest.raises(ModelError, match="no model"):
        serving_config(folder.parent, [])


def test_of_a_failed_replica_its_error_is_told_and_not_where_it_was_raised() -> None:
    trace = """engine: Traceback (most recent call last):
  File "build.py", line 8, in vllm
ModuleNotFoundError: No module named 'vllm'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "build.py", line 10, in vllm
hecate.errors.ConfigError: engine.kind vllm needs the package vllm
  got:      No module named 'vllm'
  fix:      install it
"""
    assert cause_of(trace).splitlines() == [
        "hecate.errors.ConfigError: engine.kind vllm needs the package vllm",
        "  got:      No module named 'vllm'",
        "  fix:      install it",
    ]
    assert cause_of("it died\nwithout a word") == "it died\nwithout a word"
