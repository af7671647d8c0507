"""What is not accounted for, or does not compose, is said by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hecate.config import load_config
from hecate.errors import ConfigError, ModelError
from hecate.train.config import RunConfig
from hecate.train.footprint.estimate import estimate

CONFIG = Path(__file__).parents[3] / "configs" / "train" / "sft.yaml"


@pytest.mark.parametrize(
    ("override", "told"),
    [("lora={rank: 4}", "lora.rank"), ("dense.backend=ddp", "dense.backend ddp")],
)
def test_a_run_that_is_not_accounted_for_is_named(override: str, told: str) -> None:
    overrides = ["model.path=somewhere", override]
    config = load_config(RunConfig, CONFIG, overrides).value
    with pytest.raises(ModelError, match="not accounted for") as refusal:
        estimate(config, world_size=2, vocab_size=64, device_type="cpu", process_bytes=0)
    assert told in refusal.value.got


def test_adapters_train_under_fsdp2_alone() -> None:
    overrides = ["model.path=somewhere", "lora={rank: 4}", "dense.backend=ddp"]
    with pytest.raises(ConfigError, match="fsdp2"):
        load_config(RunConfig, CONFIG, overrides)
