"""A step's metrics by hand: two layers of four experts on two ranks."""

import numpy as np

from collectives.placement import Placement
from hecate.fssdp import StepMetrics
from hecate.planner.mispredictions import Mispredictions

EVEN = Placement.even(4, 2)
COPIED = Placement(((0, 1), (0,), (1,), (0, 1)), 2)


def test_loads_before_and_after_placement_and_what_the_plan_missed():
    step = StepMetrics(
        step=3,
        owners=(EVEN, Placement.from_owners([1, 0, 1, 0], 2)),
        planned=(COPIED, Placement.from_owners([1, 0, 1, 0], 2)),
        held=(COPIED, Placement.from_owners([1, 0, 1, 0], 2)),
        computed=(
            np.array([[10, 8], [2, 0], [0, 3], [0, 1]]),  # expert 0 on both, 3 on its owner alone
            np.array([[0, 5], [1, 0], [0, 9], [1, 0]]),
        ),
        copies=2,
        gathered_bytes=200,
        reduced_bytes=400,
    )
    assert step.owned_slots.tolist() == [[20, 4], [2, 14]]
    assert step.computed_slots.tolist() == [[12, 12], [2, 14]]
    # layer 0: the copy of expert 3 on rank 0 did nothing; layer 1: 6 slots too many, expert 2's
    assert step.mispredictions == (Mispredictions(1, 0), Mispredictions(0, 1))
