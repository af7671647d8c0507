"""Materialization: replicas of experts gathered before a layer needs them, gradients sent home.

Each step begins from the shards. A plan says which experts are copied to which ranks; ``spAG``
brings the weights of layer l+1 while attention l+1 computes, and ``spRS`` takes the gradients of
layer l home while attention l goes backward (2502.02581, sections 3.2 and 4.4). Owners alone hold
optimizer state, and after the step nothing of the replicas is left.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from collectives.placement import Placement
from collectives.schedule import Change, Schedule, gather_schedule, reduce_schedule
from collectives.sparse import Handle, sparse_all_gather, sparse_reduce_scatter
from collectives.topology import Topology
from collectives.transports.protocol import Transport
from hecate.fssdp.experts import HeldExperts
from hecate.fssdp.replicas import ReplicaSlots, SlotBuffers
from hecate.fssdp.shards import ExpertShard
from hecate.mesh import naming

PhaseTimer = Callable[[str], AbstractContextManager[object]]


class Stage(enum.Enum):
    """Where the replicas of a layer are: ``SHARDED -> GATHERING -> MATERIALIZED -> SHARDED``."""

    SHARDED = enum.auto()
    GATHERING = enum.auto()
    MATERIALIZED = enum.auto()


@dataclass(frozen=True)
class Channel:
    """A process group that carries one kind of collective, and the transport that serves it."""

    group: dist.ProcessGroup
    transport: Transport


@dataclass(frozen=True)
class LayerPlan:
    """Who holds what of one layer in a step, and the transfers that bring it there and back.

    ``held[r]``: the experts of rank r in the order of its rows, its own first. ``gather`` and
    ``reduce`` are ``None`` where nobody holds a copy.
    """

    placement: Placement
    held: tuple[tuple[int, ...], ...]
    gather: Schedule | None
    reduce: Schedule | None

    @classmethod
    def of(
        cls,
        owners: Placement,
        placement: Placement,
        chunk_bytes: int,
        topology: Topology,
        *,
        earlier: LayerPlan | None = None,
    ) -> LayerPlan:
        """``earlier``: a plan that this one adds copies to, which come after those it has."""
        held = []
        for rank in range(placement.world_size):
            there = earlier.held[rank] if earlier is not None else owners.chunks_on(rank)
            copies = tuple(e for e in placement.chunks_on(rank) if e not in set(there))
            held.append(there + copies)
        if placement.holders == owners.holders:
            return cls(placement, tuple(held), None, None)
        change = [Change(owners, placement, chunk_bytes)]
        hierarchical = len(topology.nodes) > 1
        return cls(
            placement,
            tuple(held),
            gather_schedule(change, topology, hierarchical=hierarchical),
            reduce_schedule(change, topology, hierarchical=hierarchical),
        )


@dataclass
class LayerReplicas:
    """One layer in the current step: its plan, and how far its copies have come.

    ``resting`` is the plan between steps, in which owners alone hold experts; ``latest`` the last
    one with copies, which the next step most often repeats. ``slots`` hold the planned copies of
    this rank, ``late`` those that were added once the counts were known.
    """

    shard: ExpertShard
    owners: Placement
    resting: LayerPlan
    plan: LayerPlan
    latest: LayerPlan
    slots: ReplicaSlots | None = None
    late: list[ReplicaSlots] = field(default_factory=list)
    stage: Stage = Stage.SHARDED
    gathering: Handle | None = None
    reducing: Handle | None = None

    @property
    def copies(self) -> tuple[ReplicaSlots, ...]:
        """Everything on this rank that it does not own, in the order of its rows."""
        return (*(() if self.slots is None else (self.slots,)), *self.late)

    def change(self, dtype: torch.dtype) -> Change:
        chunk_bytes = self.shard.layer.layout.numel * dtype.itemsize
        return Change(self.owners, self.plan.placement, chunk_bytes)

    def weight_rows(self) -> dict[int, torch.Tensor]:
        rows = {e: self.shard.compute_row(e) for e in self.shard.expert_ids}
        for slots in self.copies:
            rows |= slots.weight_rows()
        return rows

    def grad_rows(self) -> dict[int, torch.Tensor]:
        rows = {e: self.shard.grad_row(e) for e in self.shard.expert_ids}
        for slots in self.copies:
            rows |= slots.grad_rows()
        return rows


class Materializer:
    """The replicas of all layers on this rank, and the collectives that fill and empty them.

    ``rematerialize``: weights of one layer only are kept, and gathered again for the backward
    pass; see Note [When replicas move].
    """

    # Note [When replicas move]
    # -------------------------
    # forward:   gather l+1 starts when the experts of l are done, and ends before those of l+1
    # backward:  reduce l starts when the experts of l are done; with rematerialize gather l-1
    #            follows it, into the buffer that l has just left
    # Reductions that share a gradient buffer are over before the next layer writes to it.
    # All ranks plan from the same numbers, so that all launch the same collectives in this order.

    def __init__(
        self,
        shards: Sequence[ExpertShard],
        owners: Sequence[Placement],
        *,
        rank: int,
        topology: Topology,
        gathers: Channel,
        reductions: Channel,
        rematerialize: bool,
        phase: PhaseTimer,
    ) -> None:
        self._rank, self._topology = rank, topology
        self._gathers, self._reductions = gathers, reductions
        self._rematerialize, self._phase = rematerialize, phase
        self.layers = [
            _resting(shard, own, topology) for shard, own in zip(shards, owners, strict=True)
        ]
        device = shards[0].parameter.device
        self._weights = SlotBuffers(len(shards), shared=rematerialize, device=device)
        self._one_grad = SlotBuffers(len(shards), shared=True, device=device)
        self._all_grads = SlotBuffers(len(shards), shared=False, device=device)
        self._reduces_each = True
        self._last_micro_batch = True
        self.active = False
        """Whether a step is under way; evaluation computes on the owners alone."""
        self.copies = 0
        """Experts copied so far, over all layers and ranks; again for each gather."""

    @property
    def slot_bytes(self) -> int:
        """Memory that replicas' weights and gradients take on this rank."""
        buffers = (self._weights, self._one_grad, self._all_grads)
        return sum(buffer.allocated_bytes for buffer in buffers)

    @property
    def weight_slot_bytes(self) -> int:
        """Memory that replicas' weights alone take on this rank."""
        return self._weights.allocated_bytes

    def set_owners(self, index: int, owners: Placement) -> None:
        """Other owners for one layer, between steps."""
        self.layers[index] = _resting(self.layers[index].shard, owners, self._topology)

    def begin_step(self, placements: Sequence[Placement], num_micro_batches: int) -> None:
        """Take the placements of a step, and start gathering its first layer.

        With one micro-batch a layer's gradients go home at once, and all layers share one buffer
        for them; with more they are added up in buffers of their own and go home once.
        """
        self._reduces_each = num_micro_batches == 1
        self.active = True
        for layer, placement in zip(self.layers, placements, strict=True):
            self._plan(layer, placement)
        self._make_room()
        self._prefetch(0)

    def begin_micro_batch(self, *, last: bool) -> None:
        self._last_micro_batch = last

    def experts(self, index: int) -> tuple[HeldExperts, ...]:
        """What this rank computes with in a layer, its copies complete."""
        layer = self.layers[index]
        self._prefetch(index)
        if not layer.copies:
            return (layer.shard,)
        with self._phase("gather"):
            self._finish_gather(layer)
        return (layer.shard, *layer.copies)

    def extend(self, index: int, placement: Placement) -> None:
        """Add copies to a layer that is about to run, now that its counts are known.

        Nothing hides their gather, and each layer keeps room for them until the step is over.
        """
        layer = self.layers[index]
        before = layer.plan
        if placement.holders == before.placement.holders:
            return
        shard = layer.shard
        numel, dtype = shard.layer.layout.numel, shard.compute_dtype
        self._finish_gather(layer)
        layer.plan = LayerPlan.of(
            layer.owners, placement, numel * dtype.itemsize, self._topology, earlier=before
        )
        added = layer.plan.held[self._rank][len(before.held[self._rank]) :]
        if added:
            shape, device = (len(added), numel), shard.parameter.device
            weights_nC = torch.empty(shape, dtype=dtype, device=device)
            grads_nC = torch.empty(shape, dtype=shard.parameter.dtype, device=device)
            layer.late.append(ReplicaSlots(shard.layer, added, weights_nC, grads_nC))
        if layer.stage == Stage.MATERIALIZED:
            extra = _beyond(layer.owners, before.placement, placement)
            change = Change(layer.owners, extra, numel * dtype.itemsize)
            self._gather(layer, change, self._schedule(change))
        else:
            self._prefetch(index)

    def after_forward(self, index: int) -> None:
        self._prefetch(index + 1)

    def before_backward(self, index: int) -> tuple[HeldExperts, ...]:
        """``experts``, with room for their gradients."""
        experts = self.experts(index)
        if self._reduces_each and self.layers[index].copies:
            for other in self.layers:
                self._finish_reduce(other)
        return experts

    def after_backward(self, index: int) -> None:
        layer = self.layers[index]
        if layer.plan.reduce is not None and (self._reduces_each or self._last_micro_batch):
            layer.reducing = sparse_reduce_scatter(
                [layer.grad_rows()],
                [layer.change(layer.shard.parameter.dtype)],
                schedule=layer.plan.reduce,
                transport=self._reductions.transport,
                group=self._reductions.group,
                rank=self._rank,
            )
        self._prefetch(index - 1)

    def finish_step(self) -> None:
        """Wait until every gradient is home, and forget the replicas."""
        self.active = False
        for layer in self.layers:
            self._finish_gather(layer)
            self._finish_reduce(layer)
            self._plan(layer, layer.owners)

    def _plan(self, layer: LayerReplicas, placement: Placement) -> None:
        if placement.holders == layer.owners.holders:
            layer.plan = layer.resting
        else:
            if placement.holders != layer.latest.placement.holders:
                chunk_bytes = layer.change(layer.shard.compute_dtype).chunk_bytes
                layer.latest = LayerPlan.of(layer.owners, placement, chunk_bytes, self._topology)
            layer.plan = layer.latest
        layer.slots, layer.late, layer.stage = None, [], Stage.SHARDED

    def _make_room(self) -> None:
        """Give every layer's copies on this rank their slots; shared buffers fit the largest."""
        grads = self._one_grad if self._reduces_each else self._all_grads
        needs = []
        for index, layer in enumerate(self.layers):
            copies = layer.plan.held[self._rank][len(layer.shard.expert_ids) :]
            if copies:
                numel = layer.shard.layer.layout.numel
                needs.append((index, layer, copies, numel))
                self._weights.reserve(index, len(copies) * numel, layer.shard.compute_dtype)
                grads.reserve(index, len(copies) * numel, layer.shard.parameter.dtype)
        for index, layer, copies, numel in needs:
            layer.slots = ReplicaSlots(
                layer.shard.layer,
                copies,
                self._weights.rows(index, len(copies), numel),
                grads.rows(index, len(copies), numel),
            )

    def _prefetch(self, index: int) -> None:
        """Start gathering a layer, if there is one and it is not there or on its way."""
        if not 0 <= index < len(self.layers):
            return
        layer = self.layers[index]
        if layer.plan.gather is None or layer.stage != Stage.SHARDED:
            return
        if self._rematerialize:
            for other in self.layers:
                self._finish_gather(other)
                other.stage = Stage.SHARDED
        self._gather(layer, layer.change(layer.shard.compute_dtype), layer.plan.gather)

    def _schedule(self, change: Change) -> Schedule:
        hierarchical = len(self._topology.nodes) > 1
        return gather_schedule([change], self._topology, hierarchical=hierarchical)

    def _gather(self, layer: LayerReplicas, change: Change, schedule: Schedule) -> None:
        layer.gathering = sparse_all_gather(
            [layer.weight_rows()],
            [change],
            schedule=schedule,
            transport=self._gathers.transport,
            group=self._gathers.group,
            rank=self._rank,
        )
        layer.stage = Stage.GATHERING
        self.copies += schedule.num_transfers

    def _finish_gather(self, layer: LayerReplicas) -> None:
        if layer.gathering is not None:
            with naming(f"the gather of {layer.shard.layer.name}", self._rank):
                layer.gathering.wait()
            layer.gathering = None
            layer.stage = Stage.MATERIALIZED

    def _finish_reduce(self, layer: LayerReplicas) -> None:
        if layer.reducing is not None:
            name = layer.shard.layer.name
            with self._phase("reduce"), naming(f"the reduction of {name}", self._rank):
                layer.reducing.wait()
            layer.reducing = None


def _beyond(owners: Placement, before: Placement, after: Placement) -> Placement:
    """The owners, and of ``after`` only the holders that ``before`` lacks."""
    return Placement(
        tuple(
            tuple(sorted({*own, *(set(new) - set(old))}))
            for own, old, new in zip(owners.holders, before.holders, after.holders, strict=True)
        ),
        owners.world_size,
    )


def _resting(shard: ExpertShard, owners: Placement, topology: Topology) -> LayerReplicas:
    plan = LayerPlan.of(owners, owners, 0, topology)
    return LayerReplicas(shard, owners, plan, plan, plan)
