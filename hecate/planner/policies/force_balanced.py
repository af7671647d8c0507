"""The ceiling: routing overridden to be even, so that no rank ever waits for another.

It trains no real model: tokens go to experts that no router chose.
"""

from __future__ import annotations

import numpy as np

from collectives.placement import Placement
from hecate.planner.load import Counts
from hecate.planner.policies.protocol import Policy
from hecate.planner.quotas import route


class ForceBalanced(Policy):
    """Expert parallelism over choices that ``even_choices`` makes in the routers' place."""

    name = "force_balanced"
    exact = False

    def __init__(self, *_: object) -> None:
        pass

    def route(self, counts_WE: Counts, placement: Placement) -> Counts:
        return route(counts_WE, placement, (0,) * placement.world_size, rule="even")


def even_choices(num_tokens: int, top_k: int, num_experts: int, rank: int) -> Counts:
    """Distinct experts for each token, ``[T, K]`` int64: slot after slot the next expert.

    Counts of experts differ by at most one; ranks begin at different ones. Raises ``ValueError``
    where a token asks for more experts than there are.
    """
    if top_k > num_experts:
        raise ValueError(f"{top_k} experts for each token; expected at most {num_experts}")
    slots = np.arange(num_tokens * top_k, dtype=np.int64) + rank * num_tokens * top_k
    return (slots % num_experts).reshape(num_tokens, top_k)
