"""New owners for experts between two steps, with their masters and the optimizer's moments."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from collectives.placement import Placement
from hecate.fssdp.apply import ShardedExperts
from hecate.fssdp.reshard import OwnedTables, move_owners
from hecate.mesh import ParallelContext, naming
from hecate.train.moments import MOMENTS, moments_of


def reshard_experts(
    experts: ShardedExperts,
    owners: Sequence[Placement],
    optimizer: torch.optim.Optimizer,
    ctx: ParallelContext,
) -> None:
    """Make ``owners`` those of every layer; collective over all ranks, between steps."""
    layers = []
    for shard, before, after in zip(experts.shards, experts.owners, owners, strict=True):
        moments = moments_of(optimizer, shard.parameter)
        tables = (shard.parameter.data, *(moments[name] for name in MOMENTS))
        layers.append(OwnedTables(shard.layer.name, before, after, tables))
    with naming("the re-sharding of experts", ctx.rank):
        moved = move_owners(layers, rank=ctx.rank, group=ctx.groups.gather)
    for index, (own, tables) in enumerate(zip(layers, moved, strict=True)):
        if tables is own.tables:
            continue
        shard = experts.shards[index]
        masters_eC, *moments_eC = tables
        shard.adopt(own.after.chunks_on(ctx.rank), masters_eC)
        moments_of(optimizer, shard.parameter).update(zip(MOMENTS, moments_eC, strict=True))
        experts.set_owners(index, own.after)
