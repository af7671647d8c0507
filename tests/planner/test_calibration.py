"""Calibration: copies after the gate, only where they pay."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from collectives.placement import Placement
from hecate.planner.calibration import calibrate
from hecate.planner.quotas import route


def calibrated(counts_WE, placement, left, copy_s, nodes=None):
    return calibrate(
        np.array(counts_WE, dtype=np.int64),
        placement,
        nodes or [0] * placement.world_size,
        slots_left_W=left,
        slot_s=1.0,
        copy_s=copy_s,
    )


def test_one_hot_expert_by_hand():
    # 12 slots of expert 0 on rank 0, 2 of expert 1 on rank 1: 12 without, 7 with a copy
    owners = Placement.even(2, 2)
    copied = calibrated([[6, 1], [6, 1]], owners, [1, 1], copy_s=4.9)
    assert copied.holders == ((0, 1), (1,))
    assert calibrated([[6, 1], [6, 1]], owners, [1, 1], copy_s=5.0) is owners
    assert calibrated([[6, 1], [6, 1]], owners, [1, 0], copy_s=0.0) is owners


def test_balanced_counts_ask_for_nothing():
    owners = Placement.even(4, 2)
    assert calibrated([[3, 3, 3, 3], [3, 3, 3, 3]], owners, [4, 4], copy_s=0.0) is owners


def test_two_copies_may_pay_where_one_does_not():
    # expert 0 has 30 of 30 slots on 3 ranks: 30, one copy 15 + 12, two copies 10 + 12
    copied = calibrated([[10], [10], [10]], Placement(((0,),), 3), [1, 1, 1], copy_s=12.0)
    assert copied.holders == ((0, 1, 2),)


@settings(max_examples=40)
@given(
    rows=st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3), min_size=2, max_size=2),
    owners=st.lists(st.integers(0, 1), min_size=3, max_size=3),
    left=st.lists(st.integers(0, 2), min_size=2, max_size=2),
    copy_s=st.sampled_from([0.0, 2.0, 9.0]),
)
def test_never_slower_and_within_the_best_by_one_copy(rows, owners, left, copy_s):
    """Against all sets of copies that fit: at most one copy and one slot worse."""
    counts_WE, placement = np.array(rows), Placement.from_owners(owners, 2)

    def seconds(tried):
        added = [len(tried.chunks_on(r)) - len(placement.chunks_on(r)) for r in (0, 1)]
        busiest = route(counts_WE, tried, [0, 0], rule="weighted").sum((0, 1)).max()
        return busiest + copy_s * max(added), added

    chosen = calibrated(rows, placement, left, copy_s)
    chosen_s, added = seconds(chosen)
    assert chosen.contains(placement)
    assert all(a <= b for a, b in zip(added, left, strict=True))
    assert chosen_s <= seconds(placement)[0]
    best_s = chosen_s
    for copied in itertools.product([False, True], repeat=3):
        holders = tuple((0, 1) if c else (o,) for c, o in zip(copied, owners, strict=True))
        tried_s, tried_added = seconds(Placement(holders, 2))
        if all(a <= b for a, b in zip(tried_added, left, strict=True)):
            best_s = min(best_s, tried_s)
    if left == [2, 2]:
        assert chosen_s <= best_s + copy_s + 1
