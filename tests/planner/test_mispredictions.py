"""Plans against the loads that came, worked out by hand: two ranks, four experts, owners 0 0 1 1.

``computed`` is ``[E, W]``: the slots of each expert that each rank computed.
"""

import numpy as np
import pytest

from collectives.placement import Placement
from hecate.planner.mispredictions import Mispredictions, mispredictions

OWNERS = Placement.even(4, 2)
COPIED = Placement(((0, 1), (0,), (1,), (1,)), 2)


def found(planned, computed, held=None):
    table = np.array(computed, dtype=np.int64)
    layer = mispredictions(OWNERS, planned, planned if held is None else held, table)
    return layer.idle_copies, layer.missed_experts


def test_a_copy_that_computes_is_right_and_one_that_does_not_is_idle():
    assert found(COPIED, [[8, 4], [2, 0], [0, 4], [0, 2]]) == (0, 0)
    assert found(COPIED, [[8, 0], [2, 0], [0, 6], [0, 4]]) == (1, 0)
    # its owner does not count as a copy, even without a slot
    assert found(COPIED, [[0, 4], [8, 0], [0, 2], [0, 2]]) == (0, 0)


@pytest.mark.parametrize(
    ("computed", "missed"),
    [
        pytest.param([[10, 0], [10, 0], [0, 10], [0, 10]], 0, id="even"),
        pytest.param([[11, 0], [11, 0], [0, 10], [0, 8]], 0, id="at-1.1-of-the-mean"),
        pytest.param([[12, 0], [11, 0], [0, 9], [0, 8]], 1, id="above"),
        pytest.param([[20, 0], [0, 0], [0, 2], [0, 2]], 1, id="one-hot-expert"),
        # rank 0 has 14 of 16, 6 more than the mean: the larger expert makes that up
        pytest.param([[6, 0], [8, 0], [0, 1], [0, 1]], 1, id="the-fewest"),
        # 16 more than the mean of 16, and one expert of 16
        pytest.param([[16, 0], [16, 0], [0, 0], [0, 0]], 1, id="just-enough"),
        pytest.param([[0, 0], [0, 0], [0, 0], [0, 0]], 0, id="nothing"),
    ],
)
def test_the_experts_that_make_up_a_surplus_were_missed(computed, missed):
    assert found(OWNERS, computed) == (0, missed)


def test_two_experts_may_be_needed():
    """Three ranks, all load on rank 0: 12 slots, 8 more than the mean of 4, in threes."""
    owners = Placement.from_owners([0, 0, 0, 0, 1, 2], 3)
    table = np.zeros((6, 3), dtype=np.int64)
    table[:4, 0] = 3
    assert mispredictions(owners, owners, owners, table) == Mispredictions(0, 3)


def test_what_is_copied_already_was_not_missed():
    # rank 0 computes 24 of 30, and of its experts only number 1 has no copy
    assert found(COPIED, [[20, 0], [4, 0], [0, 3], [0, 3]]) == (1, 1)


def test_a_copy_after_the_gate_was_missed_by_the_plan():
    late = Placement(((0, 1), (0,), (1,), (1,)), 2)
    assert found(OWNERS, [[8, 8], [2, 0], [0, 1], [0, 1]], held=late) == (0, 1)
    # a late copy is no plan, and so never an idle one
    assert found(OWNERS, [[5, 0], [0, 0], [0, 3], [0, 2]], held=late) == (0, 1)
