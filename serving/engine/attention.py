"""Attention over paged keys and values, as an implementation that transformers' models call.

Sliding windows, sinks (gpt-oss: one more logit in each head's softmax, whose value is nothing) and
soft caps are those of transformers' eager path. No mask comes from transformers: it makes none for
an implementation that it knows no mask for, and positions say all.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from serving.engine.batch import Batch, Span

PAGED = "hecate_paged"

_NO_WINDOW = 0
_DECODES = -1


def register_paged_attention() -> None:
    """Make ``hecate_paged`` known to transformers' attention interface; safe to repeat."""
    ALL_ATTENTION_FUNCTIONS.register(PAGED, paged_attention)


def paged_attention(
    module: nn.Module,
    query_1NTH: torch.Tensor,
    key_1MTH: torch.Tensor,
    value_1MTH: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    softcap: float | None = None,
    batch: Batch | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """One layer's attention of all of a step's tokens: ``[1, T, N, H of value]`` and no weights.

    Writes the step's keys and values to ``batch.kv`` first, at the module's ``layer_idx``.
    """
    assert batch is not None, "the model is called with batch=..."
    layer: Any = module.layer_idx
    query_TNH = query_1NTH[0].transpose(0, 1)
    key_TMH, value_TMH = key_1MTH[0].transpose(0, 1), value_1MTH[0].transpose(0, 1)
    if batch.kv is not None:
        batch.kv.write(layer, batch.write_slots_T, key_TMH, value_TMH)
    scale = query_1NTH.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window or _NO_WINDOW
    out_TNH = query_TNH.new_empty(*query_TNH.shape[:2], value_TMH.shape[-1])
    if batch.num_decodes:
        assert batch.kv is not None
        out_TNH[: batch.num_decodes] = _attend(
            query_TNH[: batch.num_decodes, None],
            batch.kv.keys[layer][batch.decode_slots_SL],
            batch.kv.values[layer][batch.decode_slots_SL],
            _decode_mask(batch, window),
            scale,
            s_aux,
            softcap,
        )[:, 0]
    for number, span in enumerate(batch.spans):
        if batch.kv is None:
            key_LMH, value_LMH = key_TMH[span.start : span.stop], value_TMH[span.start : span.stop]
        else:
            key_LMH = batch.kv.keys[layer][span.slots_L]
            value_LMH = batch.kv.values[layer][span.slots_L]
        out_TNH[span.start : span.stop] = _attend(
            query_TNH[None, span.start : span.stop],
            key_LMH[None],
            value_LMH[None],
            _span_mask(batch, number, span, window),
            scale,
            s_aux,
            softcap,
        )[0]
    return out_TNH[None], None


def _decode_mask(batch: Batch, window: int) -> torch.Tensor:
    """``[S, 1, 1, L]``: which keys the last token of each sequence sees."""
    mask = batch.masks.get((_DECODES, window))
    if mask is None:
        length_S1 = batch.decode_lengths_S[:, None]
        keys_L = torch.arange(batch.decode_slots_SL.shape[1], device=length_S1.device)
        mask = keys_L < length_S1
        if window:
            mask = mask & (keys_L >= length_S1 - window)
        mask = batch.masks[_DECODES, window] = mask[:, None, None]
    return mask


def _span_mask(batch: Batch, number: int, span: Span, window: int) -> torch.Tensor:
    """``[1, 1, Q, L]``: which keys each token of a span sees."""
    mask = batch.masks.get((number, window))
    if mask is None:
        length = span.position + span.stop - span.start
        device = batch.positions_T.device
        query_Q1 = torch.arange(span.position, length, device=device)[:, None]
        keys_L = torch.arange(length, device=device)
        mask = keys_L <= query_Q1
        if window:
            mask = mask & (keys_L > query_Q1 - window)
        mask = batch.masks[number, window] = mask[None, None]
    return mask


def _attend(
    query_SQNH: torch.Tensor,
    key_SLMH: torch.Tensor,
    value_SLMH: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    sinks_N: torch.Tensor | None,
    softcap: float | None,
) -> torch.Tensor:
    """``[S, Q, N, H of value]``; ``mask`` broadcasts to ``[S, N, Q, L]``, true where seen."""
    S, Q, N, _ = query_SQNH.shape
    M, width = value_SLMH.shape[2:]
    query, key, value = (x.transpose(1, 2) for x in (query_SQNH, key_SLMH, value_SLMH))
    if softcap is not None:
        return _soft_capped(query, key, value, mask, scale, softcap).transpose(1, 2)
    if sinks_N is not None:  # a key whose score is the sink's logit, and whose value is 0
        bias = query.new_zeros(mask.shape).masked_fill_(~mask, float("-inf"))
        sink = sinks_N.to(bias.dtype)[None, :, None, None].expand(bias.shape[0], -1, Q, 1)
        mask = torch.cat([bias.expand(-1, N, -1, -1), sink], dim=-1)
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
    if width < query.shape[-1]:  # the kernel wants one head dim; zeros change no sum
        value = F.pad(value, (0, query.shape[-1] - width))
    if Q == 1 and N > M:  # heads that share a key are its queries: nothing is repeated
        query = query.reshape(S, M, N // M, -1)
        if sinks_N is not None:
            mask = mask.reshape(S, M, N // M, -1)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=query.shape[1] > M
    )
    return out.reshape(S, N, Q, -1).transpose(1, 2)[..., :width]


def _soft_capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """``[S, N, Q, H]`` with scores ``softcap * tanh(score / softcap)``, as Gemma 2 has them."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    scores = torch.tanh(query @ key.transpose(2, 3) * (scale / softcap)) * softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value
