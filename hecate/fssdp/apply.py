"""Give every expert of a model an owner, and put our runtime behind every experts module."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from collectives.placement import Placement
from collectives.transports import Transport
from hecate.errors import ConfigError, ModelError, UsageError
from hecate.folders import cache_folder
from hecate.fssdp.blocks import find_blocks, on_start
from hecate.fssdp.channels import AUTO, carried_by, open_channels
from hecate.fssdp.choice import choose_policy
from hecate.fssdp.config import ExpertsConfig
from hecate.fssdp.experts import ExpertKernel, ExpertMath, kernel_of
from hecate.fssdp.lifecycle import StepLifecycle
from hecate.fssdp.materialize import Materializer
from hecate.fssdp.parallelism import require_data_parallel
from hecate.fssdp.plan_ahead import PlanAhead
from hecate.fssdp.routed import Override, PhaseTimer, RoutedExperts
from hecate.fssdp.routing import RouterConfig, RoutingLog
from hecate.fssdp.sharded import ShardedExperts
from hecate.fssdp.shards import ExpertShard
from hecate.mesh import ParallelContext
from hecate.models.build import through_runtime
from hecate.models.families import MoELayer, find_moe_layers, is_experts_module
from hecate.models.lora import LoraConfig, adapted_layers
from hecate.models.routers import Router, find_routers
from hecate.planner.load import LoadWindow
from hecate.planner.owners import even_owners
from hecate.planner.policies import ExpertParallel, Policy
from hecate.planner.policies.protocol import Reckoning

_DEFAULT = ExpertsConfig()
_NO_LOSSES = RouterConfig(balance_loss=0.0)
_WHOLE = LoraConfig()


def untimed(phase: str) -> AbstractContextManager[None]:
    """A ``phase`` that times nothing."""
    return contextlib.nullcontext()


def shard_experts(
    model: nn.Module,
    ctx: ParallelContext,
    policy: Policy | str | None = None,
    *,
    config: ExpertsConfig = _DEFAULT,
    router: RouterConfig = _NO_LOSSES,
    lora: LoraConfig = _WHOLE,
    dtype: torch.dtype | None = None,
    compute_dtype: torch.dtype | None = None,
    average_gradients: bool = True,
    costs_folder: Path | None = None,
    phase: PhaseTimer = untimed,
    override: Override | None = None,
    gathers_by: Callable[[Transport], Transport] | None = None,
    reductions_by: Callable[[Transport], Transport] | None = None,
    kernels_by: Callable[[ExpertKernel], ExpertKernel] | None = None,
) -> ShardedExperts:
    """Spread the experts of ``model`` over all ranks, in place; collective, called once.

    It comes before the optimizer is made and before ``fully_shard(module, mesh=ctx.mesh,
    ignored_params=set(experts.parameters()))`` or ``DistributedDataParallel(model)``, which leave
    the experts alone. Each experts module keeps one parameter, ``chunks``: ``[e, C]`` of ``dtype``
    on ``ctx.device`` with the experts that this rank owns. Their values come from the model, and
    the other experts are freed; where it is on the meta device they are zero until written.

    ``policy``: one, or the name of one; ``None`` stands for what ``config`` says. ``compute_dtype``
    is what experts compute in, the model's own unless said otherwise; ``dtype`` what the optimizer
    works in, fp32 or wider. With ``average_gradients``, as FSDP2 and DDP have it, the loss of each
    rank is a mean over its own tokens; without, gradients are summed over ranks, and the loss is
    divided by the tokens of all. With a ``lora`` that is active experts are frozen, kept in
    ``compute_dtype``, and ``chunks`` are their adapters, zero until written.

    ``costs_folder`` remembers what the planner measures here. ``override`` stands in for the
    routers' choices, and what ``gathers_by`` makes of a transport for that transport in gathers,
    as ``reductions_by`` does in reductions and ``kernels_by`` with what computes the experts:
    benchmarks, profiles and tests set them.

    Raises ``ModelError`` for a model without experts that can be sharded, ``UsageError`` for one
    that is sharded already, and ``ConfigError`` for an unknown policy or a router setting that the
    family cannot carry.
    """
    _check_untouched(model)
    require_data_parallel(model)
    layers = find_moe_layers(model)
    routers = find_routers(model, layers)
    _check_router(router, routers)
    if lora.active:
        _check_adapted(config, router)
        layers = adapted_layers(model, layers, lora)
        if "experts" not in lora.targets:  # nothing of an expert would come home
            policy = ExpertParallel()
    compute_dtype = compute_dtype or _dtype_of(model, layers[0])
    dtype = dtype or torch.promote_types(compute_dtype, torch.float32)
    folder = costs_folder or cache_folder() / "costs"
    if policy is None or isinstance(policy, str):
        policy = choose_policy(
            policy or config.policy,
            config,
            model.get_submodule(layers[0].name),
            layers[0],
            ctx,
            dtype=dtype,
            compute_dtype=compute_dtype,
            folder=folder,
        )
    placements = even_placements(layers, ctx.world_size)
    shards = tuple(
        _take_over(
            model.get_submodule(layer.name),
            ExpertShard(
                layer,
                placement.chunks_on(ctx.rank),
                device=ctx.device,
                dtype=dtype,
                compute_dtype=compute_dtype,
            ),
        )
        for layer, placement in zip(layers, placements, strict=True)
    )
    num_experts = max(layer.num_experts for layer in layers)
    blocks = find_blocks(model, layers)
    experts = ShardedExperts(
        ctx=ctx,
        layers=layers,
        modules=tuple(model.get_submodule(layer.name) for layer in layers),
        blocks=blocks,
        owners=placements,
        shards=shards,
        routers=routers,
        router=router,
        average_gradients=average_gradients,
        log=RoutingLog(len(layers), num_experts, ctx.device),
        policy=policy,
        loads=LoadWindow(len(layers), num_experts),
        plans=PlanAhead(policy),
        materializer=_materializer(
            shards,
            placements,
            ctx,
            policy,
            config.transport,
            folder,
            phase,
            (gathers_by, reductions_by),
            bool(blocks),
        ),
        rematerialize=False if lora.active else config.rematerialize,
        copies_bytes=int(config.copies_mib * 2**20),
        costs_folder=folder,
        lifecycle=StepLifecycle(),
    )
    for shard in shards:
        module = model.get_submodule(shard.layer.name)
        module.runtime = _runtime(  # type: ignore[assignment]
            module, shard, experts, override, phase, kernels_by
        )
        # what it communicates is decided while it runs: compiled code breaks off here, and goes on
        module.forward = torch.compiler.disable(types.MethodType(through_runtime, module))
    on_start(blocks, experts.materializer.block_starts)
    if router.balance_loss or router.z_loss:
        for found in routers:
            found.on_logits(experts.log.record_logits)
    _hide_from_ddp(model, experts)
    return experts


def _runtime(
    module: nn.Module,
    shard: ExpertShard,
    experts: ShardedExperts,
    override: Override | None,
    phase: PhaseTimer,
    kernels_by: Callable[[ExpertKernel], ExpertKernel] | None,
) -> RoutedExperts:
    kernel = kernel_of(shard.layer, experts.ctx.device, shard.compute_dtype)
    return RoutedExperts(
        shard,
        ExpertMath.of(module, shard.layer.name),
        kernel if kernels_by is None else kernels_by(kernel),
        experts.materializer,
        experts.policy,
        experts.lifecycle,
        override=override,
        rank=experts.ctx.rank,
        world_size=experts.ctx.world_size,
        group=experts.ctx.groups.tokens,
        log=experts.log,
        phase=phase,
    )


def _materializer(
    shards: tuple[ExpertShard, ...],
    owners: tuple[Placement, ...],
    ctx: ParallelContext,
    policy: Policy,
    transport: str,
    folder: Path,
    phase: PhaseTimer,
    wraps: Sequence[Callable[[Transport], Transport] | None],
    blocks_start: bool,
) -> Materializer:
    gathers, reductions, topology = open_channels(ctx, transport, folder)
    if transport != AUTO and isinstance(policy, Reckoning):
        topology = policy.topology  # else nobody has measured how fast the links are
    gathers, reductions = (
        channel if wrap is None else carried_by(channel, wrap)
        for channel, wrap in zip((gathers, reductions), wraps, strict=True)
    )
    return Materializer(
        shards,
        owners,
        rank=ctx.rank,
        topology=topology,
        gathers=gathers,
        reductions=reductions,
        control=ctx.groups.control,
        phase=phase,
        blocks_start=blocks_start,
    )


def even_placements(layers: tuple[MoELayer, ...], world_size: int) -> tuple[Placement, ...]:
    """Homogeneous sharding: an equal share of each layer, the odd ones rotating over ranks."""
    return even_owners([layer.num_experts for layer in layers], world_size)


def _take_over(module: nn.Module, shard: ExpertShard) -> ExpertShard:
    """Move this rank's experts out of ``module``'s stacked parameters, and drop the rest."""
    own = list(shard.expert_ids)
    table_eC = shard.parameter.data if shard.frozen is None else shard.frozen.table_eC
    for name, view in shard.layer.expert_layout.views(table_eC).items():
        stacked = module.get_parameter(name)
        if not stacked.is_meta:
            view.copy_(stacked.detach()[own])
        delattr(module, name)
    module.register_parameter("chunks", shard.parameter)
    shard.refresh()
    return shard


def _dtype_of(model: nn.Module, layer: MoELayer) -> torch.dtype:
    name = layer.expert_layout.tensors[0].name
    return model.get_submodule(layer.name).get_parameter(name).dtype


def _hide_from_ddp(model: nn.Module, experts: ShardedExperts) -> None:
    own = {id(parameter) for parameter in experts.parameters()}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in own]
    ignored = [*getattr(model, "_ddp_params_and_buffers_to_ignore", ()), *names]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)


def _check_untouched(model: nn.Module) -> None:
    """Refuse a model that was sharded or replicated before, or whose experts do not train."""
    if isinstance(model, DistributedDataParallel):
        raise UsageError(
            "DistributedDataParallel holds the experts already",
            got="a model inside DistributedDataParallel",
            fix="call shard_experts(model, ...) first, then DistributedDataParallel(model)",
        )
    for name, module in model.named_modules():
        if not is_experts_module(module):
            continue
        if hasattr(module, "runtime"):
            raise UsageError(
                "the experts of this model are sharded already",
                got=f"a second shard_experts: {name} has owners",
                fix="call shard_experts once for each model, and keep what it returns",
            )
        for parameter in module.parameters():
            if isinstance(parameter, DTensor):
                raise UsageError(
                    f"FSDP2 holds the experts of {name} already",
                    got="a DTensor",
                    fix="call shard_experts first, then fully_shard(..., "
                    "ignored_params=set(experts.parameters()))",
                )
            if not parameter.requires_grad:
                raise ModelError(
                    f"the experts of {name} are frozen",
                    got="requires_grad = False",
                    expected="experts that train",
                    fix="set requires_grad, or leave out shard_experts where experts stay as "
                    "they are",
                )


def _check_router(config: RouterConfig, routers: tuple[Router, ...]) -> None:
    silent = next((r for r in routers if not r.has_logits), None)
    if silent is not None and (config.balance_loss or config.z_loss):
        raise ConfigError(
            "router.balance_loss and router.z_loss need router logits",
            got=f"{silent.layer.name}: the family records none",
            fix="set both to 0",
        )
    unbiased = next((r for r in routers if r.bias is None), None)
    if unbiased is not None and config.bias_update_rate:
        raise ConfigError(
            "router.bias_update_rate is set, but the family's router has no bias to update",
            got=f"{unbiased.layer.name}: no e_score_correction_bias",
            expected="a family that saves one with its weights, such as deepseek_v3",
            fix="set router.bias_update_rate to 0 and use router.balance_loss",
        )


def _check_adapted(config: ExpertsConfig, router: RouterConfig) -> None:
    """Refuse what frozen experts cannot have."""
    if config.rematerialize is True:
        raise ConfigError(
            "experts.rematerialize would drop copies of experts that LoRA keeps between steps",
            got="true",
            fix="set experts.rematerialize to auto, and experts.copies_mib to what copies may take",
        )
    if router.bias_update_rate:
        raise ConfigError(
            "router.bias_update_rate would change the frozen model, and no adapter holds its bias",
            got=str(router.bias_update_rate),
            fix="set router.bias_update_rate to 0 for LoRA",
        )
