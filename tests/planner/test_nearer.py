"""Hot experts brought to all ranks for the tokens' sake: by hand, and against trying every set."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectives.topology import Link, Topology
from hecate.planner.costs import NO_LIMIT, StepCosts
from hecate.planner.nearer import bring_nearer


def nearer(loads_E, owners_E, copies=(), *, copy_s, nodes=(0, 0), **costs):
    limits = {"slots_per_rank": NO_LIMIT, "send_budget": NO_LIMIT, "overlap_experts": NO_LIMIT}
    limits |= {name: costs.pop(name) for name in tuple(limits) if name in costs}
    link = Link(1000 / copy_s, 0.0)
    return bring_nearer(
        loads_E,
        owners_E,
        copies,
        Topology(nodes, inside=link, across=link),
        StepCosts(slot_s=1.0, gather_bytes=500, reduce_bytes=500, **costs),
        **limits,
    )


def test_an_expert_comes_nearer_where_its_rows_take_longer_than_a_copy():
    # half of 100 slots are rank 1's, and each takes 1 s at both ends
    assert nearer([100], [0], copy_s=49.9, row_s=1.0) == [(0, 1)]
    assert nearer([100], [0], copy_s=50.0, row_s=1.0) == []
    assert nearer([100], [0], copy_s=49.9, row_s=0.0) == []


def test_the_hottest_come_first_and_no_more_than_pay():
    # 50 s, 30 s and 5 s of rows, for 20 s each
    assert nearer([10, 60, 100], [0, 0, 0], copy_s=20.0, row_s=1.0) == [(2, 1), (1, 1)]


def test_copies_that_are_there_anyway_save_their_rows_without_cost():
    # expert 0 is on both; of expert 1, 30 s of rows are left, and 20 s more of copies
    assert nearer([100, 60], [0, 0], [(0, 1)], copy_s=20.0, row_s=1.0) == [(0, 1), (1, 1)]
    assert nearer([100, 30], [0, 0], [(0, 1)], copy_s=20.0, row_s=1.0) == [(0, 1)]


def test_opposite_directions_at_once_cost_what_was_measured():
    # of each expert 40 slots travel, 80 s at each rank; alone a copy saves 40 s of the 80
    loads_E, owners_E = [80, 80], [0, 1]
    assert nearer(loads_E, owners_E, copy_s=79.0, row_s=1.0) == [(0, 1), (1, 0)]
    assert nearer(loads_E, owners_E, copy_s=79.0, row_s=1.0, both_ways=2.0) == []
    assert nearer(loads_E, owners_E, copy_s=39.0, row_s=1.0, both_ways=2.0) == [(0, 1), (1, 0)]


def test_rows_across_nodes_have_their_own_price():
    # ranks 0 and 1 are one node: 30 slots of each other rank, those of rank 2 across
    loads_E, owners_E, nodes = [90], [0], (0, 0, 1)
    assert nearer(loads_E, owners_E, copy_s=40, nodes=nodes, row_s=0.1, row_across_s=0.1) == []
    copied = nearer(loads_E, owners_E, copy_s=40, nodes=nodes, row_s=0.1, row_across_s=3.0)
    assert copied == [(0, 1), (0, 2)]


@pytest.mark.parametrize("limit", ["slots_per_rank", "send_budget", "overlap_experts"])
def test_every_budget_holds(limit):
    nodes = (0, 1)
    copied = nearer(
        [100, 90], [0, 0], copy_s=1.0, nodes=nodes, row_s=1.0, row_across_s=1.0, **{limit: 1}
    )
    assert copied == [(0, 1)]


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.integers(1, 30),
    st.data(),
)
def test_no_set_of_experts_on_two_ranks_is_faster(loads_E, copy_s, data):
    """One owner: all copies go one way, so that the hottest are the best of their number."""
    row_s = data.draw(st.integers(1, 4)) / 2
    copied = nearer(loads_E, [0] * len(loads_E), copy_s=float(copy_s), row_s=row_s)

    def taken_s(experts):
        rest = sum(load for e, load in enumerate(loads_E) if e not in experts)
        return rest / 2 * row_s + copy_s * len(experts)

    everyone = range(len(loads_E))
    sets = [set(c) for size in range(len(loads_E) + 1) for c in combinations(everyone, size)]
    assert taken_s({e for e, _ in copied}) == pytest.approx(min(map(taken_s, sets)))
