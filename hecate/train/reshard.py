"""Who owns which expert, in a checkpoint and out of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from collectives.placement import Placement
from hecate.fssdp import ShardedExperts
from hecate.mesh import ParallelContext


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
        experts.move_owners(owners, optimizer)
    saved = state.get("policy", {})
    if saved.get("name") == experts.policy.name:
        experts.policy.restore(saved["state"])
