"""The families that the tests train, read and write, at sizes that a laptop takes lightly."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

_SHARED = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}

_INKLING = {
    "unpadded_vocab_size": 128,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "head_dim": 32,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 1,
    "swa_head_dim": 32,
    "d_rel": 4,
    "rel_extent": 16,
}

SIZES: dict[str, dict[str, object]] = {
    "mixtral": {"intermediate_size": 96, "num_local_experts": 4, "head_dim": 32},
    "qwen3_moe": {
        "intermediate_size": 64,
        "moe_intermediate_size": 32,
        "num_experts": 6,
        "head_dim": 32,
        "norm_topk_prob": True,
    },
    "olmoe": {"intermediate_size": 32, "num_experts": 5, "num_key_value_heads": 2},
    "deepseek_v3": {
        "intermediate_size": 64,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 32,
        "rope_scaling": None,
    },
    "gpt_oss": {
        "intermediate_size": 32,
        "num_local_experts": 4,
        "head_dim": 32,
        "sliding_window": 16,
    },
    "sarvam_moe": {
        "intermediate_size": 64,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "head_dim": 32,
    },
    "inkling2_text": {**_INKLING},
    "inkling2_loop_text": {
        **_INKLING,
        "num_hidden_layers": 3,
        "n_layers_per_attn_res_block": 1,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 2,
        "loop_gate_rank": 8,
    },
}

FAMILIES = ("mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss")
"""The families that are trained, read and written in the tests."""

OTHER_LAYOUTS = ("sarvam_moe", "inkling2_text", "inkling2_loop_text")
"""Read and written only: fused projections, interleaved experts, experts converted whole."""


def toy_config(family: str, **sizes: object) -> PretrainedConfig:
    """The toy's configuration; ``sizes`` override the table's."""
    return AutoConfig.for_model(family, **{**_SHARED, **SIZES[family], **sizes})


def toy_model(
    family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: object
) -> PreTrainedModel:
    """A toy with random weights everywhere: no bias, buffer or norm is left at 0 or 1."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(toy_config(family, **sizes), dtype=dtype)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape) * 0.1
            tensor.copy_(noise + 1.0 if "norm" in name else noise)
    return model.eval()


def meta_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model of ``config`` without storage."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
