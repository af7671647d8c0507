"""Attention over packed documents: each document attends to itself alone, and nothing is masked.

transformers builds a mask over the whole row and computes every pair of it, also across documents.
On a CPU each document is computed on its own tokens here, so a row of many documents costs the sum
of their squares. Families whose attention needs more than (query, key, value) - sliding
windows, sinks, soft caps - keep transformers' own path, with masks made of ``position_ids``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from hecate.errors import ModelError
from hecate.models.causal_blocks import causal_attention

PACKED = "hecate_packed"


def register_packed_attention() -> None:
    """Make ``hecate_packed`` known to transformers' attention interface; safe to repeat."""
    ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)


def choose_attention(
    model: PreTrainedModel, wanted: Literal["auto", "packed", "sdpa", "eager"], device_type: str
) -> str:
    """The attention implementation for ``model``: ``wanted``, or the fastest that is right.

    Raises ``ModelError`` when the packed path is asked for and the family needs more than it has.
    """
    obstacle = _packed_obstacle(model)
    if device_type != "cpu":
        obstacle = obstacle or f"a {device_type} device; the packed path is for CPUs"
    if wanted == "packed" and obstacle:
        raise ModelError(
            f"model.attention: packed does not fit {type(model).__name__}",
            got=obstacle,
            expected="plain causal attention in every layer",
            fix="set model.attention to auto",
        )
    if wanted in ("sdpa", "eager"):
        return wanted
    if not obstacle:
        return PACKED
    return "sdpa" if model._supports_sdpa and "sinks" not in obstacle else "eager"


def _packed_obstacle(model: PreTrainedModel) -> str:
    """What keeps ``model`` from the packed path; empty where nothing does."""
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None) or ()
    if not model._supports_attention_backend:
        return "the family does not use transformers' attention interface"
    if any(kind != "full_attention" for kind in layer_types):
        return f"layers of type {sorted(set(layer_types))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"a sliding window of {config.sliding_window} tokens"
    if any(name.endswith("sinks") for name, _ in model.named_parameters()):
        return "attention sinks"
    if getattr(config, "attn_logit_softcapping", None):
        return "soft-capped attention scores"
    return ""


def packed_attention(
    module: nn.Module,
    query_BNSH: torch.Tensor,
    key_BMSH: torch.Tensor,
    value_BMSH: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    document_lengths: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document; the attention interface's signature and layout.

    ``document_lengths`` are run lengths over the flattened ``B * S`` tokens, no run crossing a
    row; without them every row is one document. Returns ``[B, S, N, H]`` and no weights.
    """
    for name in ("sliding_window", "s_aux", "softcap"):
        if kwargs.get(name) is not None:
            raise ModelError(
                f"packed attention has no {name}",
                got=f"{name}={kwargs[name]} in {type(module).__name__}",
                fix="set model.attention to sdpa or eager",
            )
    if dropout and module.training:
        raise ModelError(
            "packed attention has no dropout",
            got=f"dropout={dropout}",
            fix="set the model's attention_dropout to 0, or model.attention to sdpa",
        )
    B, _, S, _ = query_BNSH.shape
    lengths = tuple(document_lengths) if document_lengths is not None else (S,) * B
    return causal_attention(query_BNSH, key_BMSH, value_BMSH, lengths, scaling), None


def document_masks(model: PreTrainedModel, position_ids_BS: torch.Tensor) -> Any:
    """What ``attention_mask`` has to be for documents to stay apart on transformers' own paths.

    Most families find the documents in ``position_ids`` themselves, but some never look there
    (gpt_oss, afmoe). These are the masks that transformers makes ahead for ``generate``: one, or
    one for each type of layer; ``None`` where a plain causal call is right.
    """
    create = getattr(model, "create_masks_for_generate", create_masks_for_generate)
    embeddings: Any = model.get_input_embeddings()  # sharded, they have the compute dtype by now
    shape_BS1 = embeddings.weight.new_empty(*position_ids_BS.shape, 1)
    return create(
        config=model.config,
        inputs_embeds=shape_BS1,
        attention_mask=None,
        cache=None,
        position_ids=position_ids_BS,
    )
