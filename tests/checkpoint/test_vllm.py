"""Exported folders load in vLLM's CPU build and compute there what transformers computes.

vLLM 0.32 for the CPU runs all five families that the tests train, within these limits:

* head sizes are one of 32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512;
* DeepSeek-V3 only with kv_lora_rank 512 and qk_rope_head_dim 64 (the kernel of its latent attention
  is compiled for this size alone), and only with YaRN, as its hub releases have: with plain rotary
  positions that build computes something else (it rotates slices of the heads as if they were
  contiguous). It also reads ``topk_method`` and ``scoring_func``, which the export writes for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import FAMILIES, meta_model, toy_model
from transformers import AutoModelForCausalLM
from vllm_environment import ENVIRONMENT, run_bounded, vllm_python

from hecate.models.families import find_moe_layers
from hecate.models.hub import HubFolder, write_hub_folder

HERE = Path(__file__).parent
PROMPT = [(7 * i + 3) % 128 for i in range(24)]  # longer than gpt-oss's sliding window of 16
NUM_TOKENS = 8
RUN_S = 480

SIZES: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "v_head_dim": 64,
        "max_position_embeddings": 128,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "beta_fast": 32,
            "beta_slow": 1,
        },
    }
}


def exported(family: str, folder: Path) -> Path:
    toy_model(family, **SIZES.get(family, {})).save_pretrained(folder / "trained")
    model = meta_model(toy_model(family, **SIZES.get(family, {})).config)
    layers = find_moe_layers(model)
    hub = HubFolder(folder / "trained", model, layers)
    write_hub_folder(
        folder / family,
        model,
        layers,
        dense=hub.dense(),
        expert=hub.expert,
        dtype=torch.float32,
        tokenizer_folder=None,
        shard_bytes=100_000,
    )
    return folder / family


@pytest.mark.slow
def test_vllm_computes_what_transformers_computes(tmp_path: Path) -> None:
    python = vllm_python()
    folders = {family: exported(family, tmp_path / family) for family in FAMILIES}
    output = run_bounded(
        [
            python,
            str(HERE / "vllm_greedy.py"),
            json.dumps(PROMPT),
            str(NUM_TOKENS),
            *map(str, folders.values()),
        ],
        RUN_S,
        {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CACHE_ROOT": str(ENVIRONMENT / "cache"),
            "VLLM_CONFIG_ROOT": str(ENVIRONMENT / "config"),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": "",
        },
    )
    answers = [json.loads(line) for line in output.splitlines() if line.startswith('{"folder"')]
    assert [answer["folder"] for answer in answers] == [str(f) for f in folders.values()]
    for family, answer in zip(folders, answers, strict=True):
        model = AutoModelForCausalLM.from_pretrained(folders[family])
        ids = torch.tensor([[*PROMPT, *answer["tokens"]]])
        with torch.no_grad():
            logprobs_SV = torch.log_softmax(model(ids).logits[0, len(PROMPT) - 1 : -1], dim=-1)
        chosen = logprobs_SV.gather(1, torch.tensor(answer["tokens"])[:, None])[:, 0]
        best = logprobs_SV.max(dim=-1).values
        assert (best - chosen).abs().max() < 1e-4, family  # greedy there is greedy here
        assert (chosen - torch.tensor(answer["logprobs"])).abs().max() < 1e-4, family
