"""Compose a trainer: model, experts, dense shards, weights, optimizer, step. The one place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from collectives.transports import Transport
from hecate.errors import ConfigError
from hecate.folders import cache_folder
from hecate.fssdp import ShardedExperts, shard_experts
from hecate.fssdp.experts import ExpertKernel
from hecate.fssdp.routed import Override
from hecate.mesh import ParallelContext
from hecate.models.build import hf_config, initial_dense, initial_expert, meta_model
from hecate.models.families import MoELayer, find_moe_layers
from hecate.models.hub import HubFolder
from hecate.models.lora import adapt_linears
from hecate.models.loss import CausalLoss
from hecate.models.norms import fuse_norms
from hecate.planner.policies import Policy
from hecate.train.adapters import fill_adapters, freeze_all_but_adapters
from hecate.train.config import RunConfig
from hecate.train.dense import (
    BACKENDS,
    DTYPES,
    DenseBackend,
    DenseJob,
    assign,
    master_dtype,
    named_dense,
)
from hecate.train.ema import keep_average
from hecate.train.expert_matrices import expert_matrices
from hecate.train.metrics import ModelFlops, model_flops
from hecate.train.muon import Matrices
from hecate.train.optim import build_optimizer
from hecate.train.spikes import SpikeGuard
from hecate.train.step import TrainingStep

Phase = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class Trainer:
    """A model ready to train on this rank, and what trains it.

    ``dense``: its parameters but the experts, by name, as ``optimizer`` steps them (sharded by
    FSDP2, none where the ``backend`` steps its own). ``layers``: its experts as transformers has
    them, whatever of them trains. ``flops``: what the model costs.
    """

    model: PreTrainedModel
    dense: dict[str, nn.Parameter]
    backend: DenseBackend
    layers: tuple[MoELayer, ...]
    root: CausalLoss
    experts: ShardedExperts
    optimizer: torch.optim.Optimizer
    step: TrainingStep
    flops: ModelFlops


def build_trainer(
    config: RunConfig,
    ctx: ParallelContext,
    *,
    vocab_size: int,
    phase: Phase,
    fill: bool = True,
    architecture: PreTrainedConfig | None = None,
    policy: Policy | None = None,
    override: Override | None = None,
    gathers_by: Callable[[Transport], Transport] | None = None,
    reductions_by: Callable[[Transport], Transport] | None = None,
    kernels_by: Callable[[ExpertKernel], ExpertKernel] | None = None,
) -> Trainer:
    """Build this rank's part of the model and its optimizer; collective over all ranks.

    Weights come from ``model.path`` expert by expert, or from the seed; without ``fill`` only
    buffers are set, for a checkpoint to bring the rest, after which ``choose_loss`` is due.
    ``architecture``, which a checkpoint records, stands in for what ``model.path`` or
    ``model.family`` says. ``policy``, ``override`` and ``gathers_by`` stand in for what
    ``experts`` says, for the routers' choices and for the transports of gathers, as
    ``reductions_by`` does for those of reductions and ``kernels_by`` for what computes the
    experts: benchmarks, profiles and tests set them. Raises ``ModelError`` or ``ConfigError`` for a
    model that cannot be trained as configured.
    """
    model = meta_model(
        architecture or hf_config(config.model, vocab_size=vocab_size),
        attention=config.model.attention,
        device_type=ctx.device.type,
    )
    _check_length(model, config.data.sequence_tokens)
    layers = find_moe_layers(model)
    _check_choices(model, layers)
    fuse_norms(model)
    compute_dtype = DTYPES[config.train.dtype]
    fill = fill or config.lora.active  # a checkpoint of adapters brings nothing else
    source = None
    if config.model.path and fill:
        source = HubFolder(Path(config.model.path).expanduser(), model, layers)
    experts = shard_experts(
        model,
        ctx,
        policy,
        config=config.experts,
        router=config.router,
        lora=config.lora,
        dtype=master_dtype(compute_dtype),
        compute_dtype=compute_dtype,
        average_gradients=False,
        costs_folder=cache_folder(config.data.cache) / "costs",
        phase=phase,
        override=override,
        gathers_by=gathers_by,
        reductions_by=reductions_by,
        kernels_by=kernels_by,
    )
    if config.lora.active:
        adapt_linears(model, config.lora)
        freeze_all_but_adapters(model)
    root = CausalLoss(model)
    flops = model_flops(model, layers)
    backend = BACKENDS[config.dense.backend](
        DenseJob(
            root,
            model,
            experts,
            ctx,
            compute_dtype,
            config.dense,
            config.optimizer,
            config.train.accumulation,
        )
    )
    _fill_dense(backend.targets(), model, layers, source, config.seed, fill=fill)
    if fill:
        _fill_experts(model, layers, experts, source, config.seed)
    if config.lora.active:
        fill_adapters(model, experts, config.seed)
    experts.refresh()
    backend.start()
    model.train()
    if config.train.activation_checkpointing:
        model.activation_checkpointing_enable(
            {"use_reentrant": False, "context_fn": experts.checkpoint_contexts}
        )
    dense = backend.masters()
    matrices: dict[str, Matrices] = {}
    if config.optimizer.kind == "muon":
        for layer, module in zip(layers, experts.modules, strict=True):
            matrices[f"{layer.name}.chunks"] = expert_matrices(layer, module)
    optimizer = build_optimizer(
        config.optimizer,
        (dense | experts.named_parameters()).items(),
        [dense[name] for name in _embeddings(model) if name in dense],
        routers=[dense[name] for name in _routers(model, experts) if name in dense],
        matrices=matrices,
    )
    if config.ema.decay:
        keep_average(optimizer, config.ema.decay)
    if fill:
        choose_loss(root, backend, ctx)
    _learn_hidden(experts, root, backend, config)
    step = TrainingStep(
        backend,
        experts,
        optimizer,
        ctx,
        schedule=config.schedule,
        base_learning_rate=config.optimizer.learning_rate,
        steps=config.train.steps,
        clip_norm=config.train.clip_norm,
        guard=SpikeGuard(config.guard),
        phase=phase,
    )
    return Trainer(model, dense, backend, layers, root, experts, optimizer, step, flops)


def _fill_dense(
    targets: dict[str, torch.Tensor],
    model: PreTrainedModel,
    layers: tuple[MoELayer, ...],
    source: HubFolder | None,
    seed: int,
    *,
    fill: bool,
) -> None:
    """Set the buffers, and with ``fill`` the parameters: from the folder, or from the seed.

    Buffers follow from the configuration (rotary frequencies, zeros). What the family lets a
    folder lack starts from the seed.
    """
    initial = {name for name, _ in model.named_buffers()}
    if source is not None:
        initial |= set(source.absent)
    elif fill:
        initial |= {name for name, _ in named_dense(model)}
    for name, value in initial_dense(model, layers, seed):
        if name in initial:
            assign(targets[name], value)
    if source is not None:
        for name, value in source.dense():
            assign(targets[name], value)


def _fill_experts(
    model: PreTrainedModel,
    layers: tuple[MoELayer, ...],
    experts: ShardedExperts,
    source: HubFolder | None,
    seed: int,
) -> None:
    for layer, shard in zip(layers, experts.shards, strict=True):
        for expert_id in shard.expert_ids:
            if source is not None:
                tensors = source.expert(layer, expert_id)
            else:
                tensors = initial_expert(model, layer, expert_id, seed)
            (shard.frozen or shard).write(expert_id, tensors)


def choose_loss(root: CausalLoss, backend: DenseBackend, ctx: ParallelContext) -> None:
    """Keep the fused loss only where it gives what the family's own head gives; collective.

    It goes by what the weights of the model make of a few tokens: they must be there.
    """
    ids_BS = torch.arange(8, device=ctx.device)[None] % root.model.config.vocab_size
    positions_BS = torch.arange(8, device=ctx.device)[None]
    losses = []
    with torch.no_grad():
        for fused in (True, False):
            root.fused = fused
            losses.append(root(ids_BS, ids_BS.roll(-1, 1), positions_BS, (8,)))
    backend.release()
    root.fused = bool(torch.isclose(losses[0], losses[1], rtol=1e-2))


def _learn_hidden(
    experts: ShardedExperts, root: CausalLoss, backend: DenseBackend, config: RunConfig
) -> None:
    """Let the planner know how long attention takes, on a micro-batch of the usual size."""
    ctx, sequence = experts.ctx, config.data.sequence_tokens
    rows = config.train.batch_sequences // config.train.accumulation // ctx.world_size
    ids_BS = torch.zeros(max(1, rows), sequence, dtype=torch.int64, device=ctx.device)
    positions_BS = torch.arange(sequence, device=ctx.device).expand_as(ids_BS).contiguous()

    def forward() -> None:
        with torch.no_grad():
            root(ids_BS, ids_BS, positions_BS, (sequence,) * len(ids_BS))

    root.eval()  # dropout, where there is any, must not draw numbers that training would draw
    subject = (root.model.config.to_json_string(), ids_BS.shape, config.train.dtype)
    experts.learn_hidden(forward, subject=subject)
    backend.release()
    root.train()


def _embeddings(model: PreTrainedModel) -> list[str]:
    modules: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    held = {id(module.weight) for module in modules if module is not None}
    return [name for name, parameter in named_dense(model) if id(parameter) in held]


def _routers(model: PreTrainedModel, experts: ShardedExperts) -> list[str]:
    """What chooses experts: the parameters of modules that give the routers' logits."""
    given = [router for router in experts.routers if router.module is not router.block]
    held = {id(parameter) for router in given for parameter in router.module.parameters()}
    return [name for name, parameter in named_dense(model) if id(parameter) in held]


def _check_length(model: PreTrainedModel, sequence_tokens: int) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and sequence_tokens > limit:
        raise ConfigError(
            "data.sequence_tokens is longer than the model allows",
            got=str(sequence_tokens),
            expected=f"at most max_position_embeddings = {limit}",
            fix=f"set data.sequence_tokens to {limit} or less, or model.sizes."
            "max_position_embeddings to more",
        )


def _check_choices(model: PreTrainedModel, layers: tuple[MoELayer, ...]) -> None:
    top_k = getattr(model.config.get_text_config(), "num_experts_per_tok", None) or 0
    fewest = min(layers, key=lambda layer: layer.num_experts)
    if top_k > fewest.num_experts:
        raise ConfigError(
            "each token is to choose more experts than a layer has",
            got=f"num_experts_per_tok = {top_k}",
            expected=f"at most {fewest.num_experts}, the experts of {fewest.name}",
            fix="lower model.sizes.num_experts_per_tok, or raise the number of experts",
        )
