"""Give every expert of a model an owner, and put our runtime behind every experts module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from collectives.placement import Placement
from collectives.topology import Link, Topology
from collectives.transports import TRANSPORTS, LaunchResources
from hecate.errors import ConfigError
from hecate.fssdp.experts import ExpertMath, kernel_for
from hecate.fssdp.materialize import Channel, Materializer
from hecate.fssdp.routed import Override, PhaseTimer, RoutedExperts
from hecate.fssdp.routing import RouterConfig, RoutingLog
from hecate.fssdp.shards import ExpertShard
from hecate.mesh import ParallelContext
from hecate.models.families import MoELayer
from hecate.models.routers import Router, find_routers
from hecate.planner.load import LoadWindow
from hecate.planner.policies.protocol import Policy


@dataclass
class ShardedExperts:
    """The experts of a model as this rank holds them, one entry a layer.

    ``owners`` keep the experts between steps; what a step materializes beside them is the
    policy's to say, from the loads of the steps before.
    """

    layers: tuple[MoELayer, ...]
    owners: tuple[Placement, ...]
    shards: tuple[ExpertShard, ...]
    routers: tuple[Router, ...]
    log: RoutingLog
    policy: Policy
    loads: LoadWindow
    materializer: Materializer

    def parameters(self) -> list[nn.Parameter]:
        """The master weights of every layer in which this rank owns an expert."""
        return [shard.parameter for shard in self.shards if shard.expert_ids]

    def begin_step(self, step: int, num_micro_batches: int) -> None:
        """Forget the gradients, plan the step and start to materialize it."""
        self.log.begin_step()
        for shard in self.shards:
            shard.begin_step()
        planned = self.policy.plan(step, self.loads, self.owners)
        self.materializer.begin_step(planned, num_micro_batches)

    def begin_micro_batch(self, *, last: bool) -> None:
        self.log.begin_micro_batch()
        self.materializer.begin_micro_batch(last=last)

    def finish_backward(self) -> None:
        """Wait until the owners have the whole gradients; remember the loads of the step."""
        self.log.begin_micro_batch()
        self.materializer.finish_step()
        self.loads.push(self.log.counts_YE.cpu().numpy())

    def set_owners(self, index: int, owners: Placement) -> None:
        """Record that one layer has new owners; its shard has taken the experts over already."""
        self.owners = (*self.owners[:index], owners, *self.owners[index + 1 :])
        self.materializer.set_owners(index, owners)

    def refresh(self) -> None:
        for shard in self.shards:
            shard.refresh()


def even_placements(layers: tuple[MoELayer, ...], world_size: int) -> tuple[Placement, ...]:
    """Homogeneous sharding: an equal share of each layer, the odd ones rotating over ranks."""
    placements, dealt = [], 0
    for layer in layers:
        placements.append(Placement.even(layer.num_experts, world_size, rotation=dealt))
        dealt = (dealt + layer.num_experts % world_size) % world_size
    return tuple(placements)


def release_experts(model: nn.Module, layers: tuple[MoELayer, ...]) -> None:
    """Take the stacked expert parameters off ``model``, so that nobody else shards them."""
    for layer in layers:
        module = model.get_submodule(layer.name)
        for tensor in layer.layout.tensors:
            delattr(module, tensor.name)


def shard_experts(
    model: nn.Module,
    layers: tuple[MoELayer, ...],
    ctx: ParallelContext,
    *,
    router: RouterConfig,
    policy: Policy,
    rematerialize: bool,
    dtype: torch.dtype,
    compute_dtype: torch.dtype,
    phase: PhaseTimer,
    override: Override | None = None,
) -> ShardedExperts:
    """Put this rank's own experts, and the runtime, where ``release_experts`` left a gap.

    Each experts module keeps one parameter, ``chunks``: ``[e, C]`` of ``dtype`` with the experts
    that this rank owns, all zero until they are written. Raises ``ConfigError`` for a router
    setting that the family cannot carry.
    """
    placements = even_placements(layers, ctx.world_size)
    log = RoutingLog(len(layers), max(layer.num_experts for layer in layers), ctx.device)
    routers = find_routers(model, layers)
    _check_router(router, routers)
    shards = tuple(
        ExpertShard(
            layer,
            placement.chunks_on(ctx.rank),
            device=ctx.device,
            dtype=dtype,
            compute_dtype=compute_dtype,
        )
        for layer, placement in zip(layers, placements, strict=True)
    )
    # schedules depend on who shares a node, not on how fast the links are
    topology = Topology(ctx.node_of_rank, inside=Link(1.0, 0.0), across=Link(1.0, 0.0))
    transport = TRANSPORTS["hierarchical" if len(topology.nodes) > 1 else "p2p"]
    materializer = Materializer(
        shards,
        placements,
        rank=ctx.rank,
        topology=topology,
        gathers=Channel(ctx.groups.gather, transport(LaunchResources())),
        reductions=Channel(ctx.groups.reduce, transport(LaunchResources())),
        rematerialize=rematerialize,
        phase=phase,
    )
    for layer, shard in zip(layers, shards, strict=True):
        module = model.get_submodule(layer.name)
        module.register_parameter("chunks", shard.parameter)
        module.runtime = RoutedExperts(  # type: ignore[assignment]
            shard,
            ExpertMath.of(module, layer.name),
            kernel_for(ctx.device, compute_dtype, layer.layout),
            materializer,
            policy,
            override=override,
            rank=ctx.rank,
            world_size=ctx.world_size,
            group=ctx.groups.tokens,
            log=log,
            phase=phase,
        )
    if router.balance_loss or router.z_loss:
        for found in routers:
            found.on_logits(log.record_logits)
    loads = LoadWindow(len(layers), max(layer.num_experts for layer in layers))
    return ShardedExperts(layers, placements, shards, routers, log, policy, loads, materializer)


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
