"""Load a Hugging Face folder for serving, and refuse a model that could not be right here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from hecate.errors import ModelError
from hecate.models.pretrained import causal_model
from serving.engine.attention import PAGED, paged_attention, register_paged_attention
from serving.engine.batch import Batch, Piece, paged_batch, whole_batch
from serving.engine.prepared import mapped_model
from serving.memory.kv import LayerShape, PagedKV

_PROBE = "hecate_probe"
_CHECK_TOKENS = 12

# What families pass to attention that says nothing about who attends to whom.
_SAYS_NOTHING = frozenset(
    "position_ids cache past_key_values use_cache output_attentions output_hidden_states "
    "output_router_logits return_dict cache_position position_embeddings is_causal".split()
)
_TYPES_OF_LAYER = ("full_attention", "sliding_attention")
# Rotary embeddings that change for all tokens of a batch when one position is beyond this.
_BATCH_WIDE_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True)
class LoadedModel:
    """A model whose attention is ours. ``layers``: what each keeps of a token."""

    model: PreTrainedModel
    digest: str
    max_tokens: int
    layers: tuple[LayerShape, ...]


def load_model(
    folder: Path, *, dtype: str, device: torch.device, prepared: Path | None = None
) -> LoadedModel:
    """The causal language model in ``folder``, checked against transformers' own attention.

    ``dtype``: a torch dtype's name, or ``auto`` for the folder's. Weights are mapped from their
    safetensors files; on a CPU from files in ``prepared`` where transformers converts them. Raises
    ``ModelError`` for a folder that transformers cannot load, or a model with a layer that our
    attention does not carry, by the layer's name.
    """
    as_dtype = None if dtype == "auto" else getattr(torch, dtype)
    model: Any
    try:
        digest = digest_of(folder)
    except OSError as error:
        raise ModelError(
            f"cannot load the model in {folder}",
            got=str(error),
            expected="config.json and safetensors files that can be read",
            fix="give the folder of a model",
        ) from error
    if prepared is None or device.type != "cpu":
        model = causal_model(folder, as_dtype)
    else:
        model = mapped_model(folder, as_dtype, digest=digest, cache=prepared)
    model = model.to(device).eval().requires_grad_(False)
    layers = adopt(model)
    return LoadedModel(model, digest, context_tokens(model), layers)


def digest_of(folder: Path) -> str:
    """SHA-256 of the model's configuration and weights: what keys and values depend on."""
    digest = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def context_tokens(model: PreTrainedModel) -> int:
    """How many positions are right for every sequence of a batch; 0 where the model sets none."""
    config = model.config.get_text_config()
    context = int(getattr(config, "max_position_embeddings", None) or 0)
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type") in _BATCH_WIDE_ROPE:
            original = parameters.get("original_max_position_embeddings") or context
            context = min(context, int(original))
    return context


def adopt(model: PreTrainedModel) -> tuple[LayerShape, ...]:
    """Give ``model`` our attention; what each of its layers keeps of a token.

    Runs a few tokens through both and compares. Raises ``ModelError`` where a layer would not be
    right, and leaves the model's attention as it was.
    """
    register_paged_attention()
    before = model.config._attn_implementation
    reference = "eager" if before == PAGED else before
    try:
        layers = _layers(model)
        _check_outputs(model, layers, reference)
    except Exception:
        model.set_attn_implementation(reference)
        raise
    return layers


def _layers(model: PreTrainedModel) -> tuple[LayerShape, ...]:
    """What reaches the attention interface, layer by layer."""
    if not model._supports_attention_backend:
        raise _refused(model, "its attention does not use transformers' attention interface")
    found: dict[int, LayerShape] = {}
    config = model.config.get_text_config()
    names = _layer_names(model, config.num_hidden_layers)
    types = getattr(config, "layer_types", None) or ["full_attention"] * len(names)
    for name, kind in zip(names, types, strict=False):
        if kind not in _TYPES_OF_LAYER:
            raise _refused(model, f"{name} is of type {kind}")

    def probe(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        layer = getattr(module, "layer_idx", None)
        if layer is None or layer in found or layer >= len(names):
            raise _refused(model, f"{type(module).__name__} attends twice, or has no layer_idx")
        known = {*_SAYS_NOTHING, "batch", "scaling", "dropout"}
        known |= {"sliding_window", "s_aux", "softcap"}
        unknown = sorted(k for k, v in kwargs.items() if v is not None and k not in known)
        if unknown:
            raise _refused(model, f"{names[layer]} passes {', '.join(unknown)} to attention")
        if types[layer] == "sliding_attention" and not kwargs.get("sliding_window"):
            raise _refused(model, f"{names[layer]} does not say how wide its window is")
        found[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        return paged_attention(module, query, key, value, mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register(_PROBE, probe)
    model.set_attn_implementation(_PROBE)
    run_model(model, whole_batch([[0, 1]], model.device))
    missing = [name for layer, name in enumerate(names) if layer not in found]
    if missing:
        raise _refused(model, f"{missing[0]} does not use transformers' attention interface")
    return tuple(found[layer] for layer in range(len(names)))


def _layer_names(model: PreTrainedModel, count: int) -> list[str]:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return [f"{name}.{layer} ({type(module[layer]).__name__})" for layer in range(count)]
    raise _refused(model, f"it has no list of {count} layers")


def _check_outputs(model: PreTrainedModel, layers: tuple[LayerShape, ...], reference: str) -> None:
    """The last token's logits in two chunks through our attention, against transformers' own."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    tokens = [(7 * i + 3) % vocabulary for i in range(_CHECK_TOKENS)]
    model.set_attn_implementation(reference)
    with torch.inference_mode():
        ids = torch.tensor([tokens], device=model.device)
        expected = model(input_ids=ids, use_cache=False).logits[0, -1].float()
    model.set_attn_implementation(PAGED)
    kv = PagedKV(layers, num_blocks=4, block_tokens=4, dtype=model.dtype, device=model.device)
    block_ids = (2, 0, 3)
    for start, stop in ((0, 5), (5, _CHECK_TOKENS - 1), (_CHECK_TOKENS - 1, _CHECK_TOKENS)):
        piece = Piece(tokens[start:stop], start, block_ids[: -(-stop // 4)])
        logits = run_model(model, paged_batch([piece], kv, model.device))[-1].float()
    error = float((logits - expected).norm() / expected.norm().clamp(min=1e-6))
    if not error < (0.1 if model.dtype.itemsize < 4 else 1e-3):
        raise _refused(model, f"a prompt in chunks gives other logits (relative error {error:.2g})")


def run_model(
    model: PreTrainedModel, batch: Batch, rows: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits ``[rows, V]`` of a batch's tokens; of all of them where ``rows`` is None."""
    with torch.inference_mode():
        out = model(
            input_ids=batch.tokens_T[None],
            position_ids=batch.positions_T[None],
            use_cache=False,
            logits_to_keep=0 if rows is None else rows,
            batch=batch,
        )
    logits: torch.Tensor = out.logits[0]
    return logits


def embed(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """``[D]`` float32: the mean of a whole prompt's last hidden states, at unit length."""
    backbone: Any = model.base_model
    with torch.inference_mode():
        out = backbone(
            input_ids=batch.tokens_T[None],
            position_ids=batch.positions_T[None],
            use_cache=False,
            batch=batch,
        )
    mean_D: torch.Tensor = out.last_hidden_state[0].float().mean(0)
    unit_D: torch.Tensor = mean_D / mean_D.norm().clamp(min=1e-12)
    return unit_D


def _refused(model: PreTrainedModel, why: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot be served by the native engine",
        got=why,
        expected="a model whose every layer goes through transformers' attention interface",
        fix="serve it with engine.kind vllm, if vLLM knows the family",
    )
