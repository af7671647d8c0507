"""Whether a model is a decoder that our kernels know, and where its weights are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.activations import SiLUActivation
from transformers.modeling_utils import PreTrainedModel

# Families whose layers are: norm, attention with rotary embeddings, norm, MLP or experts.
FAMILIES = frozenset({"llama", "mistral", "mixtral", "olmoe", "qwen2", "qwen3", "qwen3_moe"})

GATE_COLUMNS = 32  # gates that lie beside their ups in a packed weight


class Unknown(Exception):
    """The kernels do not know such a model; the message says what of it."""


@dataclass(frozen=True)
class Linear:
    """``parts``: the model's own weights ``[n, K]``, one below the other, or one ``[E, N, K]``."""

    parts: tuple[torch.Tensor, ...]
    bias: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """``[N, K]``, or ``[E, N, K]`` of experts."""
        *experts, _, K = self.parts[0].shape
        return (*experts, sum(part.shape[-2] for part in self.parts), K)

    @property
    def matrices(self) -> int:
        """How many ``[N, K]`` it has."""
        return self.shape[0] if len(self.shape) == 3 else 1

    def weight(self) -> torch.Tensor:
        """All of it; a copy, where there are several parts, that nobody keeps."""
        return self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts)


@dataclass(frozen=True)
class LayerWeights:
    """``gate_up``: gates, then ups. ``router`` is None where the layer is dense. ``window``: 0 for
    all tokens."""

    input_norm: torch.Tensor
    post_norm: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    qkv: Linear
    out: Linear
    router: Linear | None
    gate_up: Linear
    down: Linear
    window: int


@dataclass(frozen=True)
class Decoder:
    """``chosen`` experts a token, whose probabilities sum up to 1 where they are ``normalised``."""

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor
    head: Linear
    rotary: nn.Module
    queries: int
    keys: int
    head_dim: int
    scale: float
    eps: float
    chosen: int
    normalised: bool


def decoder_of(model: PreTrainedModel) -> Decoder:
    """The weights of ``model``, fused where they share their input. Raises ``Unknown``."""
    config: Any = model.config
    if config.model_type not in FAMILIES:
        raise Unknown(f"the family {config.model_type}")
    if getattr(config, "clip_qkv", None) is not None:
        raise Unknown("clip_qkv")
    if model.dtype not in (torch.float32, torch.bfloat16):
        raise Unknown(f"weights in {model.dtype}")
    backbone: Any = model.base_model
    head: Any = model.get_output_embeddings()
    layers = tuple(_layer(layer, config) for layer in backbone.layers)
    attention = backbone.layers[0].self_attn
    decoder = Decoder(
        embedding=backbone.embed_tokens.weight,
        layers=layers,
        final_norm=backbone.norm.weight,
        head=Linear((head.weight,), head.bias),
        rotary=backbone.rotary_emb,
        queries=config.num_attention_heads,
        keys=config.num_key_value_heads,
        head_dim=attention.head_dim,
        scale=attention.scaling,
        eps=config.rms_norm_eps,
        chosen=int(getattr(config, "num_experts_per_tok", None) or 0),
        normalised=bool(getattr(config, "norm_topk_prob", True)),
    )
    _check_sizes(decoder, model.dtype)
    return decoder


def _layer(layer: Any, config: Any) -> LayerWeights:
    _children(layer, "self_attn mlp input_layernorm post_attention_layernorm")
    attention, mlp = layer.self_attn, layer.mlp
    _children(attention, "q_proj k_proj v_proj o_proj", "q_norm k_norm")
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    biases = [p.bias for p in projections]
    if any(b is None for b in biases) and any(b is not None for b in biases):
        raise Unknown("biases of some of queries, keys and values")
    if hasattr(mlp, "experts"):
        _children(mlp, "gate experts")
        experts = mlp.experts
        parameters = {name for name, _ in experts.named_parameters()}
        if parameters != {"gate_up_proj", "down_proj"} or getattr(experts, "is_transposed", False):
            raise Unknown("how its experts lie in memory")
        router = Linear((mlp.gate.weight,))
        gate_up, down = Linear((experts.gate_up_proj,)), Linear((experts.down_proj,))
        act = experts.act_fn
    else:
        _children(mlp, "gate_proj up_proj down_proj", "act_fn")
        router = None
        if any(p.bias is not None for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)):
            raise Unknown("biases of its MLP")
        gate_up = Linear((mlp.gate_proj.weight, mlp.up_proj.weight))
        down, act = Linear((mlp.down_proj.weight,)), mlp.act_fn
    if not isinstance(act, SiLUActivation | nn.SiLU):
        raise Unknown(f"the activation {type(act).__name__}")
    return LayerWeights(
        input_norm=layer.input_layernorm.weight,
        post_norm=layer.post_attention_layernorm.weight,
        q_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        qkv=Linear(
            tuple(p.weight for p in projections),
            None if biases[0] is None else torch.cat(biases),
        ),
        out=Linear((attention.o_proj.weight,), attention.o_proj.bias),
        router=router,
        gate_up=gate_up,
        down=down,
        window=getattr(attention, "sliding_window", getattr(config, "sliding_window", None)) or 0,
    )


def _children(module: nn.Module, needed: str, possible: str = "") -> None:
    there = {name for name, _ in module.named_children()}
    must = set(needed.split())
    if must - there or there - must - set(possible.split()):
        raise Unknown(f"{type(module).__name__} of {', '.join(sorted(there))}")


def _check_sizes(decoder: Decoder, dtype: torch.dtype) -> None:
    """Kernels read 64 bytes at a time, and no row has a rest."""
    step = 64 // dtype.itemsize
    sizes = {
        "the width": (decoder.embedding.shape[1], step),
        "the head dim": (decoder.head_dim, step),
    }
    widths = {layer.down.shape[-1] for layer in decoder.layers}
    for name, (size, divisor) in [
        *sizes.items(),
        *(("an MLP's width", (width, GATE_COLUMNS)) for width in widths),
    ]:
        if size % divisor:
            raise Unknown(f"{name}, {size}, which is no multiple of {divisor}")
