"""What a forward and a backward pass allocate, found by running them on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from hecate.errors import ModelError
from hecate.fssdp.experts import ExpertMath, kernel_for
from hecate.fssdp.routing import RoutingLog
from hecate.fssdp.unplaced import META, HeldShapes, UnplacedExperts
from hecate.models.attention import PACKED, document_masks
from hecate.models.families import MoELayer
from hecate.models.norms import fuse_norms
from hecate.models.routers import find_routers
from hecate.train.footprint.live import LiveBytes
from hecate.train.footprint.parts import PassBytes


@dataclass(frozen=True)
class MicroBatchShape:
    """One micro-batch of one rank, and what becomes of it in a MoE layer.

    ``rows_Y``: slots that the rank computes of each layer; ``held_Y``: experts that it computes
    with there, copies included; ``crosses``: whether rows travel between ranks.
    """

    sequences: int
    sequence_tokens: int
    rows_Y: tuple[int, ...]
    held_Y: tuple[int, ...]
    crosses: bool


def traced_pass(
    model: PreTrainedModel,
    layers: tuple[MoELayer, ...],
    batch: MicroBatchShape,
    *,
    device: torch.device,
    dtype: torch.dtype,
    compute_dtype: torch.dtype,
    checkpointing: bool,
    router_losses: bool,
) -> PassBytes:
    """Run the trunk of ``model`` forward and backward on shapes alone.

    ``model``: on the meta device, not sharded, of the family's own experts; it is used up.
    ``device``: where training would run, which decides the kernels; ``dtype``: of gradients of
    experts; ``compute_dtype``: of the passes. Gradients of parameters do not count, since the
    accounting has them already. Raises ``ModelError`` where a family's code asks for values.
    """
    fuse_norms(model)
    nn.Module.to(model, dtype=compute_dtype)
    held = []
    for layer, rows, count in zip(layers, batch.rows_Y, batch.held_Y, strict=True):
        module = model.get_submodule(layer.name)
        shapes = HeldShapes.of(layer, count, dtype, compute_dtype)
        module.runtime = UnplacedExperts(  # type: ignore[assignment]
            shapes,
            ExpertMath.of(module, layer.name),
            kernel_for(device, compute_dtype, layer.layout),
            num_rows=rows,
            crosses=batch.crosses,
        )
        held += [*shapes.weights.values(), *shapes.grads.values()]
    log = RoutingLog(len(layers), max(layer.num_experts for layer in layers), META)
    if router_losses:
        for router in find_routers(model, layers):
            router.on_logits(log.record_logits)
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable(
            {"use_reentrant": False, "context_fn": log.checkpoint_contexts}
        )
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    known = [*model.parameters(), *model.buffers(), *grads, *held]
    try:
        return _run(model, LiveBytes(known), batch)
    except (NotImplementedError, RuntimeError) as error:  # asks for values, which shapes lack
        raise ModelError(
            f"the activations of {type(model).__name__} cannot be estimated",
            got=str(error).splitlines()[0],
            expected="a forward pass that runs on shapes alone",
            fix="measure a short run instead: its memory.json has what it took",
        ) from error


def _run(model: PreTrainedModel, live: LiveBytes, batch: MicroBatchShape) -> PassBytes:
    """The passes, as ``CausalLoss`` makes them up to its head."""
    shape = (batch.sequences, batch.sequence_tokens)
    trunk = getattr(model, model.base_model_prefix)
    with live:
        ids_BS = torch.empty(shape, dtype=torch.int64, device=META)
        positions_BS = torch.empty_like(ids_BS)
        inputs: dict[str, Any] = {"position_ids": positions_BS, "use_cache": False}
        if model.config._attn_implementation == PACKED:
            inputs["document_lengths"] = (batch.sequence_tokens,) * batch.sequences
        else:
            inputs["attention_mask"] = document_masks(model, positions_BS)
        hidden_BSD = trunk(input_ids=ids_BS, **inputs).last_hidden_state
        kept, forward_peak = live.now_bytes, live.peak_bytes
        live.start_anew()
        hidden_BSD.backward(torch.empty_like(hidden_BSD))
        backward_peak = live.peak_bytes
    return PassBytes(kept, forward_peak, backward_peak)
