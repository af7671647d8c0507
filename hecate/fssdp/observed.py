"""What a step did with its experts, as values: loads, copies, bytes, mispredictions, moves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from collectives.placement import Placement
from hecate.planner.load import Counts
from hecate.planner.mispredictions import Mispredictions, mispredictions


@dataclass(frozen=True)
class StepMetrics:
    """One step over all layers and ranks, the same on all of them.

    ``owners``, ``planned``, ``held``: each layer's owners during the step, its holders by the plan,
    and those at its end, with copies that were added after the gate. ``computed``: each layer's
    slots of each expert by the rank that computed them, ``[E, W]`` int64, all micro-batches
    together. ``copies``: experts copied, again for each gather; ``gathered_bytes`` is what these
    moved and ``reduced_bytes`` what their gradients moved, relays between nodes among them.
    ``frozen_bytes`` is what of frozen experts moved beside, to ranks that had no copy of them.
    ``moved``: experts with another owner after the step (re-sharding).
    """

    step: int
    owners: tuple[Placement, ...]
    planned: tuple[Placement, ...]
    held: tuple[Placement, ...]
    computed: tuple[Counts, ...]
    copies: int
    gathered_bytes: int
    reduced_bytes: int
    moved: int = 0
    frozen_bytes: int = 0

    @cached_property
    def owned_slots(self) -> Counts:
        """Load before placement, ``[Y, W]``: slots of each rank if all went to experts' owners."""
        owned_YW = np.zeros((len(self.owners), self.owners[0].world_size), dtype=np.int64)
        for row_W, own, computed_EW in zip(owned_YW, self.owners, self.computed, strict=True):
            np.add.at(row_W, list(own.owners), computed_EW.sum(1))
        return owned_YW

    @cached_property
    def computed_slots(self) -> Counts:
        """Load after placement, ``[Y, W]``: the slots that each rank computed."""
        return np.stack([computed_EW.sum(0) for computed_EW in self.computed])

    @cached_property
    def mispredictions(self) -> tuple[Mispredictions, ...]:
        """Of each layer: copies in vain, and experts that lacked one."""
        layers = zip(self.owners, self.planned, self.held, self.computed, strict=True)
        return tuple(mispredictions(*layer) for layer in layers)
