"""New owners for experts between two steps, with their masters and the optimizer's moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
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
        layers.append(OwnedTables(before, after, tables))
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


def placement_state(experts: ShardedExperts) -> dict[str, Any]:
    """Who owns what, and what the next steps are planned from; for a checkpoint."""
    return {
        "owners": [list(own.owners) for own in experts.owners],
        "loads": experts.loads.state().tolist(),
        "policy": {"name": experts.policy.name, "state": experts.policy.state()},
    }


def restore_placement(
    state: Mapping[str, Any],
    experts: ShardedExperts,
    optimizer: torch.optim.Optimizer,
    ctx: ParallelContext,
    *,
    same_world: bool,
) -> None:
    """Take up what ``placement_state`` said, before the experts themselves are loaded.

    At another world size owners stay as they are now, even, and the policy begins anew, since
    both speak of ranks; so does a policy of another name than the one that was saved. What a
    checkpoint of an earlier version lacks begins anew as well. Collective over all ranks.
    """
    if "loads" in state:
        experts.loads.restore(np.array(state["loads"], dtype=np.int64))
    if not same_world:
        return
    if "owners" in state:
        owners = tuple(Placement.from_owners(own, ctx.world_size) for own in state["owners"])
        reshard_experts(experts, owners, optimizer, ctx)
    saved = state.get("policy", {})
    if saved.get("name") == experts.policy.name:
        experts.policy.restore(saved["state"])
