"""Keys for parallelism that Hecate does not have are refused with what to do instead."""

from pathlib import Path

import pytest
from jobs import write_config

from hecate.config import load_config
from hecate.errors import ConfigError
from hecate.train.config import RunConfig
from hecate.train.parallelism import what_instead

# as users of Megatron-LM, torchtitan, DeepSpeed and transformers write them
KEYS = {
    "mesh.tensor_parallel": "splits no matrix",
    "tensor_model_parallel_size": "splits no matrix",
    "train.tp_size": "splits no matrix",
    "parallelism.tensor_parallel_degree": "leave it out",
    "train.pipeline_parallel_degree": "by layers",
    "pipeline_model_parallel_size": "by layers",
    "mesh.pp": "by layers",
    "context_parallel_size": "packed documents",
    "data.context_parallel": "packed documents",
    "mesh.cp": "packed documents",
    "train.sequence_parallel": "splits no sequence",
    "experts.expert_parallel_degree": "experts.policy",
    "expert_model_parallel_size": "experts.policy",
    "mesh.ep_size": "experts.policy",
    "data_parallel_shard_degree": "every rank takes rows of its own",
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_another_program_says_what_to_do_here(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key") as caught:
        load_config(RunConfig, write_config(tmp_path / "toy.yaml"), [f"{key}=2"])
    assert KEYS[key] in caught.value.fix
    section = "parallelism" if key.startswith("parallelism.") else key
    assert caught.value.what == f"unknown key {section} (--set)"


@pytest.mark.parametrize("key", ["stesp", "context_length", "temperature", "expert_count", "steps"])
def test_other_unknown_keys_are_left_to_the_nearest_name(key: str) -> None:
    assert what_instead((key,)) == ""
