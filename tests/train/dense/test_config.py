"""What the configuration of the dense part takes, and what DeepSpeed is told for it."""

from __future__ import annotations

from typing import Any

import pytest

from hecate.config import load_config
from hecate.errors import ConfigError
from hecate.train.config import RunConfig
from hecate.train.dense.config import OWNED, DeepSpeedConfig, engine_settings

CONFIG = """
name: toy
model: {family: mixtral}
train: {steps: 1, batch_sequences: 4, accumulation: 2}
"""


def load(tmp_path, *lines: str) -> RunConfig:
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG + "\n".join(lines))
    return load_config(RunConfig, path).value


def test_fsdp2_is_what_nobody_asks_for(tmp_path):
    assert load(tmp_path).dense.backend == "fsdp2"


def test_what_is_deepspeeds_own_is_passed_on_as_it_is(tmp_path):
    config = load(
        tmp_path,
        "dense:",
        "  backend: deepspeed",
        "  deepspeed:",
        "    stage: 3",
        "    offload_optimizer: {device: cpu, pin_memory: true}",
        "    offload_param: {device: none}",
        "    settings:",
        "      wall_clock_breakdown: true",
        "      zero_optimization: {stage3_prefetch_bucket_size: 1000}",
    )
    assert engine_settings(config.dense.deepspeed, accumulation=2, bfloat16=True) == {
        "steps_per_print": 1 << 30,
        "wall_clock_breakdown": True,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.0,
        "zero_optimization": {
            "stage": 3,
            "stage3_prefetch_bucket_size": 1000,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
        "bf16": {"enabled": True},
    }


@pytest.mark.parametrize("key", sorted(OWNED))
def test_a_key_that_we_say_ourselves_is_refused_with_its_place(tmp_path, key):
    name, _, inner = key.partition(".")
    setting = f"{name}: {{{inner}: 1}}" if inner else f"{name}: 1"
    with pytest.raises(ConfigError) as error:
        load(
            tmp_path,
            "dense:",
            "  backend: deepspeed",
            f"  deepspeed: {{settings: {{{setting}}}}}",
        )
    assert f"settings.{key} is not DeepSpeed's to say here" in str(error.value)
    assert OWNED[key] in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"offload_optimizer": {"device": "nvme"}}, "choose cpu or none"),
        ({"stage": 2, "offload_param": {"device": "cpu"}}, "offload_param needs stage 3"),
        ({"settings": {"zero_optimization": 3}}, "not a mapping"),
        ({"stage": 0}, "1, 2 or 3"),
    ],
)
def test_what_cannot_be_done_is_refused(settings: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        DeepSpeedConfig(**settings)


def test_a_deepspeed_section_without_deepspeed_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="backend is ddp"):
        load(tmp_path, "dense: {backend: ddp, deepspeed: {stage: 1}}")


def test_an_unknown_backend_lists_the_choices(tmp_path):
    with pytest.raises(ConfigError, match="'fsdp2', 'ddp' or 'deepspeed'"):
        load(tmp_path, "dense: {backend: fsdp}")
