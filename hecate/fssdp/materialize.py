"""Materialization: replicas of experts gathered before a layer needs them, gradients sent home.

Each step begins from the shards. A plan says which experts are copied to which ranks; ``spAG``
brings the weights of layer l+1 while attention l+1 computes, and ``spRS`` takes the gradients of
layer l home while attention l goes backward (2502.02581, sections 3.2 and 4.4). Owners alone hold
optimizer state, and after the step nothing of the replicas is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist

from collectives.agreement import agree, digest_of
from collectives.placement import Placement
from collectives.schedule import Change
from collectives.sparse import sparse_all_gather, sparse_reduce_scatter
from collectives.topology import Topology
from hecate.errors import PlacementError
from hecate.fssdp.experts import HeldExperts
from hecate.fssdp.frozen_copies import FrozenCopies
from hecate.fssdp.layer_clock import LayerClock, Spent
from hecate.fssdp.layer_plan import Carrier, Channel, LayerPlan, LayerPlanner
from hecate.fssdp.layer_replicas import LayerReplicas, Stage
from hecate.fssdp.replicas import ReplicaSlots, SlotBuffers
from hecate.fssdp.shards import ExpertShard
from hecate.mesh import naming

PhaseTimer = Callable[[str], AbstractContextManager[object]]


class Materializer:
    """The replicas of all layers on this rank, and the collectives that fill and empty them.

    ``control``: a group of CPU tensors in which ranks make sure that they planned the same.
    ``blocks_start``: whether ``block_starts`` is called; without, gathers do not wait for a block.
    """

    # Note [When replicas move]
    # -------------------------
    # forward:   gather l+1 starts with the first block after the experts of l, and ends before
    #            those of l+1. What gathers a block's dense parameters does so as the block begins,
    #            and the block waits for it: copies sent before would stand in its way, and nothing
    #            would hide them.
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
        control: dist.ProcessGroup,
        phase: PhaseTimer,
        blocks_start: bool = False,
    ) -> None:
        self._rank, self._world_size, self._phase = rank, topology.world_size, phase
        self._gathers, self._reductions, self._control = gathers, reductions, control
        self._planner = LayerPlanner(topology, gathers, reductions)
        self.layers = [self._resting(shard, own) for shard, own in zip(shards, owners, strict=True)]
        device = shards[0].parameter.device
        self._one_layer = SlotBuffers(len(shards), shared=True, device=device)
        self._all_layers = SlotBuffers(len(shards), shared=False, device=device)
        self._one_grad = SlotBuffers(len(shards), shared=True, device=device)
        self._all_grads = SlotBuffers(len(shards), shared=False, device=device)
        self._blocks_start = blocks_start
        self._next: int | None = None
        self._reduces_each = True
        self._last_micro_batch = True
        self._rematerialize = False
        self._frozen = FrozenCopies(
            shards, self._planner, gathers, rank=rank, world_size=self._world_size
        )
        self.active = False
        """Whether a step is under way; evaluation computes on the owners alone."""
        self.copies = 0
        """Experts copied in this step, over all layers and ranks; again for each gather."""
        self.gathered_bytes = self.reduced_bytes = 0
        """What these moved, and what their gradients moved on the way home."""
        self.clock = LayerClock(len(shards), device)

    @property
    def slot_bytes(self) -> int:
        """Memory that replicas' weights and gradients take on this rank."""
        buffers = (self._one_layer, self._all_layers, self._one_grad, self._all_grads)
        return sum(buffer.allocated_bytes for buffer in buffers)

    @property
    def weight_slot_bytes(self) -> int:
        """Memory that replicas' weights alone take on this rank."""
        return self._one_layer.allocated_bytes + self._all_layers.allocated_bytes

    @property
    def frozen_bytes(self) -> int:
        """What of frozen experts moved in this step, to ranks that had no copy yet."""
        return self._frozen.moved_bytes

    @property
    def kept_bytes(self) -> int:
        """Memory that copies of frozen experts take on this rank, between steps as well."""
        return sum(layer.shard.frozen.copies_bytes for layer in self.layers if layer.shard.frozen)

    def set_owners(self, index: int, owners: Placement) -> None:
        """Other owners for one layer, between steps."""
        self.layers[index] = self._resting(self.layers[index].shard, owners)
        self._frozen.set_owners(self.layers[index])

    def begin_step(
        self,
        placements: Sequence[Placement],
        num_micro_batches: int,
        *,
        rematerialize: bool = False,
        kept_bytes: int = 0,
    ) -> None:
        """Take the placements of a step; its first layer's gather comes next.

        With one micro-batch a layer's gradients go home at once, and all layers share one buffer
        for them; with more they are added up in buffers of their own and go home once.
        ``rematerialize``: weights of one layer only are kept, and gathered again for the backward
        pass; see Note [When replicas move]. ``kept_bytes``: memory of a rank for copies of frozen
        experts, those of the step among them. Raises ``CollectiveFailure`` on every rank where
        ranks come with different placements.
        """
        self._reduces_each, self._rematerialize = num_micro_batches == 1, rematerialize
        self.active = True
        self.copies = self.gathered_bytes = self.reduced_bytes = 0
        self.clock.settle()
        for layer, placement in zip(self.layers, placements, strict=True):
            self._plan(layer, placement)
        self._require_agreement()
        self._frozen.begin_step(self.layers, kept_bytes)
        self._make_room()
        self._gather_next(0)

    def _require_agreement(self) -> None:
        if self._world_size == 1:
            return
        digests = [layer.plan.digest for layer in self.layers]
        with naming("the comparison of plans", self._rank):
            agree(
                digest_of((*digests, int(self._reduces_each), int(self._rematerialize))),
                digests,
                self._control,
                self._rank,
                self._world_size,
                device=torch.device("cpu"),
                layers=[layer.shard.layer.name for layer in self.layers],
            )

    def begin_micro_batch(self, *, last: bool) -> None:
        self._last_micro_batch = last

    def experts(self, index: int) -> tuple[HeldExperts, ...]:
        """What this rank computes with in a layer, its copies complete."""
        layer = self.layers[index]
        self._prefetch(index)
        if layer.copies:
            with self._phase("gather"):
                self._finish_gather(layer)
        return layer.experts

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
        layer.plan = self._layer_plan(shard, layer.owners, placement, earlier=before)
        self._frozen.extend(layer, placement)
        added = layer.plan.held[self._rank][len(before.held[self._rank]) :]
        if added:
            shape, device = (len(added), numel), shard.parameter.device
            weights_nC = torch.empty(shape, dtype=dtype, device=device)
            grads_nC = torch.empty(shape, dtype=shard.parameter.dtype, device=device)
            layer.late.append(ReplicaSlots(shard.layer, added, weights_nC, grads_nC))
        if layer.stage == Stage.MATERIALIZED:
            extra = _beyond(layer.owners, before.placement, placement)
            change = Change(layer.owners, extra, numel * dtype.itemsize, shard.layer.name)
            self._gather(layer, self._planner.gather_of(change))
        else:
            self._prefetch(index)

    def after_forward(self, index: int) -> None:
        self._gather_next(index + 1)

    def block_starts(self) -> None:
        """A block of the model begins, its dense parameters complete."""
        index, self._next = self._next, None
        if index is not None:
            self._prefetch(index)

    def before_backward(self, index: int) -> tuple[HeldExperts, ...]:
        """``experts``, with room for their gradients."""
        experts = self.experts(index)
        if self._reduces_each and self.layers[index].copies:
            for other in self.layers:
                self._finish_reduce(other)
        return experts

    def after_backward(self, index: int) -> None:
        layer = self.layers[index]
        home = layer.plan.reduce
        if home is not None and (self._reduces_each or self._last_micro_batch):
            with self._naming("reduction", layer):
                layer.reducing = sparse_reduce_scatter(
                    [layer.grad_rows()],
                    [home.change],
                    schedule=home.schedule,
                    transport=home.transport,
                    group=self._reductions.group,
                    rank=self._rank,
                )
            self.reduced_bytes += home.moved_bytes
        self._prefetch(index - 1)

    def finish_step(self) -> None:
        """Wait until every gradient is home, and forget the replicas."""
        self.active, self._next = False, None
        for layer in self.layers:
            self._finish_gather(layer)
            self._finish_reduce(layer)
            self._plan(layer, layer.owners)

    def _plan(self, layer: LayerReplicas, placement: Placement) -> None:
        if placement.holders == layer.owners.holders:
            layer.plan = layer.resting
        else:
            if placement.holders != layer.latest.placement.holders:
                layer.latest = self._layer_plan(layer.shard, layer.owners, placement)
            layer.plan = layer.latest
        layer.slots, layer.late, layer.stage = None, [], Stage.SHARDED

    def _make_room(self) -> None:
        """Give every layer's copies on this rank their slots; shared buffers fit the largest."""
        weights = self._one_layer if self._rematerialize else self._all_layers
        grads = self._one_grad if self._reduces_each else self._all_grads
        needs = []
        for index, layer in enumerate(self.layers):
            copies = layer.plan.held[self._rank][len(layer.shard.expert_ids) :]
            if copies:
                numel = layer.shard.layer.layout.numel
                needs.append((index, layer, copies, numel))
                weights.reserve(index, len(copies) * numel, layer.shard.compute_dtype)
                grads.reserve(index, len(copies) * numel, layer.shard.parameter.dtype)
        for index, layer, copies, numel in needs:
            layer.slots = ReplicaSlots(
                layer.shard.layer,
                copies,
                weights.rows(index, len(copies), numel),
                grads.rows(index, len(copies), numel),
            )

    def _gather_next(self, index: int) -> None:
        """Start gathering a layer with the next block; see Note [When replicas move]."""
        if self._blocks_start:
            self._next = index
        else:
            self._prefetch(index)

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
        self._gather(layer, layer.plan.gather)

    def _gather(self, layer: LayerReplicas, carrier: Carrier) -> None:
        layer.launched, layer.alone_s = self.clock.mark(), carrier.alone_s
        with self._naming("gather", layer):
            layer.alone_s += self._frozen.fetch(layer)
            layer.gathering = sparse_all_gather(
                [layer.weight_rows()],
                [carrier.change],
                schedule=carrier.schedule,
                transport=carrier.transport,
                group=self._gathers.group,
                rank=self._rank,
            )
        layer.stage = Stage.GATHERING
        self.copies += carrier.schedule.num_transfers
        self.gathered_bytes += carrier.moved_bytes

    def _finish_gather(self, layer: LayerReplicas) -> None:
        if layer.gathering is not None:
            clock, index = self.clock, layer.shard.layer.index
            needed = clock.mark()
            with self._naming("gather", layer):
                layer.gathering.wait()
                if layer.fetching is not None:
                    layer.fetching.wait()
                    layer.fetching = None
            clock.add(Spent.EXPOSED, index, needed, clock.mark())
            clock.add(Spent.HIDDEN, index, layer.launched, needed, at_most_s=layer.alone_s)
            layer.gathering = None
            layer.stage = Stage.MATERIALIZED

    def _finish_reduce(self, layer: LayerReplicas) -> None:
        if layer.reducing is not None:
            with self._phase("reduce"), self._naming("reduction", layer):
                layer.reducing.wait()
            layer.reducing = None

    def _naming(self, what: str, layer: LayerReplicas) -> AbstractContextManager[None]:
        """Whether it fails where it is launched or where it is waited for."""
        return naming(f"the {what} of {layer.shard.layer.name}", self._rank)

    def _layer_plan(
        self,
        shard: ExpertShard,
        owners: Placement,
        placement: Placement,
        *,
        earlier: LayerPlan | None = None,
    ) -> LayerPlan:
        name = shard.layer.name
        try:
            return self._planner.plan(
                owners,
                placement,
                name=name,
                gather_bytes=max(1, shard.gather_bytes),  # nothing of frozen experts, in plans
                reduce_bytes=max(1, shard.reduce_bytes),  # in which nobody holds a copy of them
                earlier=earlier,
            )
        except ValueError as error:
            raise PlacementError(
                f"rank {self._rank}: the policy plans what cannot be for {name}",
                got=str(error),
                expected="every expert on its owner, and on other ranks beside",
                fix="let the policy add ranks to the holders that it is given, and take none away",
            ) from error

    def _resting(self, shard: ExpertShard, owners: Placement) -> LayerReplicas:
        plan = self._layer_plan(shard, owners, owners)
        return LayerReplicas(shard, owners, plan, plan, plan)


def _beyond(owners: Placement, before: Placement, after: Placement) -> Placement:
    """The owners, and of ``after`` only the holders that ``before`` lacks."""
    return Placement(
        tuple(
            tuple(sorted({*own, *(set(new) - set(old))}))
            for own, old, new in zip(owners.holders, before.holders, after.holders, strict=True)
        ),
        owners.world_size,
    )
