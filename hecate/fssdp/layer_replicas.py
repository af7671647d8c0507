"""One layer's replicas in a step: what is planned, what is on its way, what is there."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import torch

from collectives.placement import Placement
from collectives.sparse import Handle
from hecate.fssdp.experts import AdaptedExperts, HeldExperts
from hecate.fssdp.layer_clock import Mark
from hecate.fssdp.layer_plan import LayerPlan
from hecate.fssdp.replicas import ReplicaSlots
from hecate.fssdp.shards import ExpertShard


class Stage(enum.Enum):
    """Where the replicas of a layer are: ``SHARDED -> GATHERING -> MATERIALIZED -> SHARDED``."""

    SHARDED = enum.auto()
    GATHERING = enum.auto()
    MATERIALIZED = enum.auto()


@dataclass
class LayerReplicas:
    """One layer in the current step: its plan, and how far its copies have come.

    ``resting`` is the plan between steps, in which owners alone hold experts; ``latest`` the last
    one with copies, which the next step most often repeats. ``launched``: when the gather under way
    began, ``alone_s``: what it should take by itself. ``slots`` hold the planned copies of
    this rank, ``late`` those that were added once the counts were known. ``wanted``: the owners,
    and ranks that need a frozen expert which they do not have; ``fetching`` brings it.
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
    launched: Mark = None
    alone_s: float = 0.0
    reducing: Handle | None = None
    wanted: Placement | None = None
    fetching: Handle | None = None

    @property
    def copies(self) -> tuple[ReplicaSlots, ...]:
        """Everything on this rank that it does not own, in the order of its rows."""
        return (*(() if self.slots is None else (self.slots,)), *self.late)

    @property
    def experts(self) -> tuple[HeldExperts, ...]:
        """What this rank computes with, its own experts first."""
        frozen = self.shard.frozen
        if frozen is None:
            return (self.shard, *self.copies)
        sets: tuple[ExpertShard | ReplicaSlots, ...] = (self.shard, *self.copies)
        return tuple(
            AdaptedExperts(held, tuple(map(frozen.tensors, held.expert_ids))) for held in sets
        )

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
