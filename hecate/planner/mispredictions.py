"""Where a plan was wrong once the loads are known: copies in vain, and experts that needed one.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from collectives.placement import Placement
from hecate.planner.load import Counts

OVERLOADED = 1.1
"""Slots of a rank over the mean of ranks from which its surplus counts as a straggler's."""


@dataclass(frozen=True)
class Mispredictions:
    """How far one layer's plan missed the loads of the step that it was made for.

    ``idle_copies``: planned but cold. Copies (of an expert, on a rank) that the plan made and that
    computed no slot in the step. ``missed_experts``: hot but not planned. Experts that the plan
    left with their owner alone and that either were copied after the gate, or are the fewest whose
    slots make up the surplus of a rank that computed more than ``OVERLOADED`` times the mean.
    """

    idle_copies: int
    missed_experts: int


def mispredictions(
    owners: Placement, planned: Placement, held: Placement, computed_EW: Counts
) -> Mispredictions:
    """One layer in one step.

    ``planned``: holders by the plan; ``held``: at the end of the step, late copies among them.
    ``computed_EW``: slots of each expert that each rank computed, ``[E, W]``, over micro-batches.
    """
    idle, added, alone = 0, 0, []
    for expert, (early, late) in enumerate(zip(planned.holders, held.holders, strict=True)):
        if len(early) > 1:
            own = owners.holders[expert]
            idle += sum(1 for rank in early if rank not in own and not computed_EW[expert, rank])
        elif len(late) > 1:
            added += 1
        else:
            alone.append(expert)
    return Mispredictions(idle, added + _needed(computed_EW, alone))


def _needed(computed_EW: Counts, alone: Sequence[int]) -> int:
    """The fewest of the experts ``alone`` that make up the surpluses of overloaded ranks.

    Each was computed by its owner. An expert without slots never counts, and where all of a rank's
    are too few, all count.
    """
    loads_W = computed_EW.sum(0)
    mean = float(loads_W.mean())
    surplus_W = np.where(loads_W > OVERLOADED * mean, loads_W - mean, 0.0)
    if not len(alone) or not surplus_W.any():
        return 0
    slots_E = computed_EW[alone]
    rank_E, slots_E = slots_E.argmax(1), slots_E.max(1)  # of those that one rank alone computes
    order = np.lexsort((-slots_E, rank_E))  # rank by rank, the largest first
    rank_E, slots_E = rank_E[order], slots_E[order]
    before_E = np.cumsum(slots_E) - slots_E
    before_E -= before_E[np.searchsorted(rank_E, rank_E)]  # only the larger ones of its rank
    return int(((before_E < surplus_W[rank_E]) & (slots_E > 0)).sum())
