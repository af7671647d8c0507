"""The training loss of a causal language model, without ever holding the logits of a batch.

The output projection and the cross-entropy run together over chunks of tokens, and the gradients
of both are made in the forward pass while a chunk's logits are still in cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from hecate.models.attention import PACKED, document_masks

IGNORED = -100
CHUNK_TOKENS = 1024


class CausalLoss(nn.Module):
    """A causal language model as the map from a micro-batch to its summed cross-entropy.

    ``fused`` runs the model's trunk and then ``linear_cross_entropy``; without it the family's own
    head makes whole logits, for families that do more than project (scale or cap them).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.fused = True

    def forward(
        self,
        input_ids_BS: torch.Tensor,
        labels_BS: torch.Tensor,
        position_ids_BS: torch.Tensor,
        document_lengths: Sequence[int],
    ) -> torch.Tensor:
        """Sum over labels of ``-log p(label)``; labels are shifted already, -100 counts nothing.

        All ``[B, S]`` int64; positions restart with each document. Returns a scalar, fp32 or wider.
        """
        inputs: dict[str, Any] = {
            "input_ids": input_ids_BS,
            "position_ids": position_ids_BS,
            "use_cache": False,
        }
        if self.model.config._attn_implementation == PACKED:
            inputs["document_lengths"] = tuple(document_lengths)
        else:
            inputs["attention_mask"] = document_masks(self.model, position_ids_BS)
        if not self.fused:
            logits = self.model(**inputs).logits.flatten(0, 1)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return F.cross_entropy(
                logits, labels_BS.flatten(), reduction="sum", ignore_index=IGNORED
            )
        trunk = getattr(self.model, self.model.base_model_prefix)
        hidden_TD = trunk(**inputs).last_hidden_state.flatten(0, 1)
        head = self.model.get_output_embeddings()
        return linear_cross_entropy(hidden_TD, head.weight, head.bias, labels_BS.flatten())


def linear_cross_entropy(
    hidden_TD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_T: torch.Tensor,
) -> torch.Tensor:
    """Sum of ``cross_entropy(hidden @ weight.T + bias, labels)`` over labels that are not -100.

    Scalar in fp32 or wider; differentiable once in hidden, weight and bias.
    """
    operands = (hidden_TD, weight_VD, bias_V)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    result: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_TD, weight_VD, bias_V, labels_T, wanted
    )
    return result


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_T: torch.Tensor,
        wanted: bool,
    ) -> torch.Tensor:
        wide = torch.promote_types(hidden_TD.dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=hidden_TD.device)
        d_hidden_TD = torch.empty_like(hidden_TD) if wanted else None
        d_weight_VD = d_bias_V = None  # a frozen head needs no gradient
        if wanted and ctx.needs_input_grad[1]:
            d_weight_VD = torch.zeros_like(weight_VD, dtype=wide)
        if wanted and bias_V is not None and ctx.needs_input_grad[2]:
            d_bias_V = torch.zeros_like(bias_V, dtype=wide)
        for first in range(0, hidden_TD.shape[0], CHUNK_TOKENS):
            chunk = slice(first, first + CHUNK_TOKENS)
            hidden, labels = hidden_TD[chunk], labels_T[chunk]
            counted = labels != IGNORED
            target = labels.clamp(min=0)[:, None]
            logits = F.linear(hidden, weight_VD, bias_V).to(wide)
            picked = logits.gather(1, target)
            peak = logits.amax(-1, keepdim=True)
            total = logits.sub_(peak).exp_().sum(-1, keepdim=True)
            loss += ((total.log() + peak - picked).squeeze(1) * counted).sum()
            if not wanted:
                continue
            assert d_hidden_TD is not None
            d_logits = logits.div_(total)
            d_logits.scatter_add_(1, target, d_logits.new_full((1, 1), -1.0).expand_as(target))
            if not bool(counted.all()):
                d_logits.mul_(counted[:, None])
            if d_bias_V is not None:
                d_bias_V += d_logits.sum(0)
            d_logits = d_logits.to(hidden.dtype)
            torch.mm(d_logits, weight_VD, out=d_hidden_TD[chunk])
            if d_weight_VD is None:
                continue
            if wide == hidden.dtype:
                d_weight_VD.addmm_(d_logits.t(), hidden)
            else:
                d_weight_VD += torch.mm(d_logits.t(), hidden)
        if wanted:
            ctx.weight_dtype = weight_VD.dtype
            ctx.save_for_backward(d_hidden_TD, d_weight_VD, d_bias_V)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_hidden_TD, *of_head = ctx.saved_tensors
        scale = d_loss.to(d_hidden_TD.dtype)
        d_weight, d_bias = (
            None if d is None else d.mul_(d_loss).to(ctx.weight_dtype) for d in of_head
        )
        return d_hidden_TD.mul_(scale), d_weight, d_bias, None, None
