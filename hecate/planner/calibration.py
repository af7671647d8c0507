"""Calibration: more copies once the gate has decided, if they pay with nothing to hide them. Pure.

A plan is made from the loads of the steps before. After the gate the true counts are known on every
rank, and what memory is left may hold further copies (2502.02581, section 4.2). Their gather stands
between the gate and the experts, so that it must save more time than it takes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collectives.placement import Placement
from hecate.planner.load import Counts
from hecate.planner.quotas import Rule, route


def calibrate(
    counts_WE: Counts,
    placement: Placement,
    node_of_rank: Sequence[int],
    *,
    slots_left_W: Sequence[int],
    slot_s: float,
    copy_s: float,
    rule: Rule = "weighted",
) -> Placement:
    """``placement`` with the copies that save most time, or itself where none saves any.

    ``counts_WE``: slots of each source rank, as the gate decided. ``slots_left_W``: copies that
    each rank has room for still. ``slot_s``: seconds of one slot on one rank, ``copy_s`` of one
    more copy on the rank that takes most. Copies are tried one after the other, each from the
    busiest rank to the least busy one that can take it; of all stages the fastest is kept, the
    first of equals.
    """
    holders = [list(ranks) for ranks in placement.holders]
    left_W = list(slots_left_W)
    added_W = [0] * placement.world_size
    best, now = placement, placement
    computed_EW = route(counts_WE, now, node_of_rank, rule=rule).sum(0)
    best_s = float(computed_EW.sum(0).max()) * slot_s
    mean = -(-int(counts_WE.sum()) // placement.world_size)
    while True:
        found = _next_copy(computed_EW, holders, left_W, mean)
        if found is None:
            return best
        expert, rank = found
        holders[expert] = sorted([*holders[expert], rank])
        left_W[rank] -= 1
        added_W[rank] += 1
        now = Placement(tuple(map(tuple, holders)), placement.world_size)
        computed_EW = route(counts_WE, now, node_of_rank, rule=rule).sum(0)
        taken_s = float(computed_EW.sum(0).max()) * slot_s + max(added_W) * copy_s
        if taken_s < best_s:
            best, best_s = now, taken_s


def _next_copy(
    computed_EW: Counts, holders: Sequence[Sequence[int]], left_W: Sequence[int], mean: int
) -> tuple[int, int] | None:
    """(expert, rank): what takes the busiest rank closest to ``mean``, to the least busy rank."""
    loads_W = computed_EW.sum(0)
    busiest = int(np.argmax(loads_W))
    for rank in np.argsort(loads_W, kind="stable").tolist():
        surplus = int(min(loads_W[busiest] - mean, mean - loads_W[rank]))
        if surplus <= 0:
            return None
        if left_W[rank] <= 0:
            continue
        mine_E = computed_EW[:, busiest].copy()
        mine_E[[expert for expert, ranks in enumerate(holders) if rank in ranks]] = 0
        enough = np.flatnonzero(mine_E >= surplus)
        expert = int(enough[np.argmin(mine_E[enough])]) if len(enough) else int(np.argmax(mine_E))
        if mine_E[expert] > 0:
            return expert, rank
    return None
