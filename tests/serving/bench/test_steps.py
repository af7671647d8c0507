"""What a profile fits, of times made up, and of a toy's engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from served import engine_config, save_served

from hecate.errors import ConfigError
from serving.bench.steps import profile, step_model
from serving.lora.profile import read_profile, write_profile
from serving.lora.step_model import StepModel

BATCHES = [(8,), (8, 8), (8, 64), (64, 64), (0, 0, 0, 0), (8, 8, 8, 64)]
PROMPTS = [((16, 0),), ((16, 64),), ((64, 8),), ((64, 8), (32, 64))]


@pytest.mark.parametrize("padded", [False, True])
def test_the_model_is_the_one_that_took_the_times(padded: bool) -> None:
    truth = StepModel(0.01, 0.002, 1e-5, 0.003, 1e-4, 1e-6, 0.02, 1e-4, 0.03, 1e-3, padded)
    found, fits = step_model(
        [(batch, truth.decode(batch)) for batch in BATCHES],
        [(prompts, truth.prefill(prompts)) for prompts in PROMPTS],
        [(rank, truth.load(rank)) for rank in (8, 16, 64)],
        [(rank, truth.load(rank, on_host=False)) for rank in (8, 16, 64)],
    )
    assert found.padded == padded
    for name, value in vars(truth).items():
        assert getattr(found, name) == pytest.approx(value, rel=0.02), name
    assert min(fits.model_dump().values()) > 0.999


def test_a_toy_is_profiled_and_the_file_says_what_was_found(tmp_path: Path) -> None:
    save_served(tmp_path / "toy", "qwen3")
    config = engine_config(
        tmp_path / "toy", blocks=96, max_sequences=4, lora={"slots": 2, "throttle_ms": 20.0}
    )
    said: list[str] = []
    found = asyncio.run(profile(config, said.append))
    assert said[0] == "decode steps of up to 4 answers"
    assert found.steps.decode([8, 16]) > 0 and found.steps.prefill([(16, 8)]) > 0
    assert found.steps.load(16) >= 0.015  # of the 20 ms that a load takes, what is not hidden
    path = tmp_path / "steps.json"
    write_profile(found, path)
    assert read_profile(path) == found
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match="no profile"):
        read_profile(path)


def test_without_slots_there_is_nothing_to_profile(tmp_path: Path) -> None:
    config = engine_config(tmp_path, lora={"slots": 0})
    with pytest.raises(ConfigError, match="without adapters"):
        asyncio.run(profile(config, print))
