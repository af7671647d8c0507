"""Which copies shorten a step: replicas chosen by predicted time. Pure.

The paper materializes the most loaded experts up to what overlap and memory allow (2502.02581,
Algorithm 1), whether or not that pays. Here each copy must: it is made if the straggler time that
it saves exceeds the seconds of moving the expert there and its gradient home.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collectives.placement import Placement

Loads = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StepCosts:
    """What the planner reckons with, equal on all ranks.

    ``slot_s``: seconds of one slot through one expert, forward and backward, on one rank.
    ``copy_s``: seconds that one copy adds to its step, gather and reduction, where nothing hides
    them. ``free_copies``: copies that each rank can receive behind attention, which cost nothing
    (the overlap degree t of the paper). ``slots_per_rank``: the most copies a rank has memory for.
    """

    slot_s: float
    copy_s: float
    free_copies: int
    slots_per_rank: int


LEAST_IMBALANCE = 1.05


def choose_copies(
    loads_E: Loads, owners: Placement, costs: StepCosts, *, least_imbalance: float = LEAST_IMBALANCE
) -> Placement:
    """The placement of one layer for a step with these loads; ``owners`` where no copy pays.

    Greedy: from the busiest rank to the least busy one that has a slot, the expert whose load comes
    closest to half of their difference from above, or else the largest; then only as many of these
    copies as make the fastest step, since a copy helps little while another rank is as busy. Every
    choice follows from ``loads_E`` alone, ties to the lower expert and rank.
    """
    world_size = owners.world_size
    load_rE = np.zeros((world_size, owners.num_chunks))
    load_rE[list(owners.owners), np.arange(owners.num_chunks)] = loads_E
    load_r = load_rE.sum(1)
    mean = float(load_r.sum()) / world_size
    if mean == 0 or float(load_r.max()) <= least_imbalance * mean:
        return owners
    holders = [set(ranks) for ranks in owners.holders]
    copies_r = [0] * world_size
    best, best_s = owners, float(load_r.max()) * costs.slot_s
    while True:
        found = _best_move(load_rE, load_r, holders, copies_r, costs)
        if found is None:
            return best
        expert, source, target, amount = found
        holders[expert].add(target)
        copies_r[target] += 1
        load_rE[source, expert] -= amount
        load_rE[target, expert] += amount
        load_r[source] -= amount
        load_r[target] += amount
        exposed = max(0, max(copies_r) - costs.free_copies)
        taken_s = float(load_r.max()) * costs.slot_s + exposed * costs.copy_s
        if taken_s < best_s:
            ranks = tuple(tuple(sorted(those)) for those in holders)
            best, best_s = Placement(ranks, world_size), taken_s


def _best_move(
    load_rE: Loads,
    load_r: Loads,
    holders: list[set[int]],
    copies_r: list[int],
    costs: StepCosts,
) -> tuple[int, int, int, float] | None:
    """(expert, source, target, slots) of the next copy, if one pays."""
    source = int(np.argmax(load_r))
    for target in np.argsort(load_r, kind="stable").tolist():
        surplus = float(load_r[source] - load_r[target]) / 2
        if target == source or copies_r[target] >= costs.slots_per_rank:
            continue
        held = np.array([target in ranks for ranks in holders])
        mine = np.where(held, 0.0, load_rE[source])
        enough = np.flatnonzero(mine >= surplus)
        expert = int(enough[np.argmin(mine[enough])]) if len(enough) else int(np.argmax(mine))
        amount = min(float(mine[expert]), surplus)
        cost_s = 0.0 if copies_r[target] < costs.free_copies else costs.copy_s
        if amount >= 1 and amount * costs.slot_s > cost_s:
            return expert, source, target, amount
    return None
