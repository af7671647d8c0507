"""Copies that pay for themselves: by hand, and against doing nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectives.placement import Placement
from collectives.topology import Link, Topology
from hecate.planner.costs import StepCosts
from hecate.planner.materialization import materialize_by_time
from hecate.planner.plan import owners_table, replicas_to_placements
from hecate.planner.quotas import route

OWNERS = Placement.from_owners([0, 0, 1, 1], 2)


def copied(loads_E, owners=OWNERS, *, copy_s=0.0, slots_per_rank=8, **costs):
    """The placement for loads of one layer; a slot takes a second, a copy ``copy_s``."""
    nodes = costs.pop("node_of_rank", (0,) * owners.world_size)
    link = Link(1000 / copy_s if copy_s else 1e15, 0.0)
    replicas = materialize_by_time(
        np.array([loads_E], dtype=np.float64),
        owners_table((owners,), owners.num_chunks),
        Topology(nodes, inside=link, across=link),
        StepCosts(slot_s=1.0, gather_bytes=500, reduce_bytes=500, **costs),
        overlap_experts=owners.num_chunks,
        slots_per_rank=slots_per_rank,
    )
    return replicas_to_placements((owners,), replicas)[0]


def test_the_smallest_expert_that_evens_two_ranks_out_is_copied():
    # rank 0 has 90, rank 1 has 10: 40 must move, and expert 1 has just enough
    assert copied([46, 44, 5, 5]).holders == ((0,), (0, 1), (1,), (1,))


def test_where_none_is_enough_the_largest_goes_and_then_another():
    # 50 must move: first the 30 of expert 0, then the 20 of expert 2, which is just enough
    owners = Placement.from_owners([0, 0, 0, 0, 1], 2)
    assert copied([30, 30, 20, 20, 0], owners).holders == ((0, 1), (0,), (0, 1), (0,), (1,))


def test_a_copy_must_save_more_than_it_costs():
    loads_E = [46, 44, 5, 5]
    assert copied(loads_E, copy_s=39.9) != OWNERS
    assert copied(loads_E, copy_s=40.0) is OWNERS


def test_what_attention_hides_costs_nothing_as_far_as_they_overlap():
    loads_E = [46, 44, 5, 5]
    hidden = {"copy_s": 100.0, "hidden_gather_s": 50.0, "hidden_reduce_s": 50.0}
    assert copied(loads_E, **hidden) != OWNERS
    # half of it slows the computation down after all: 50 s, for a gain of 40
    assert copied(loads_E, **hidden, overlap=0.5) is OWNERS
    # gathered twice: the second gather is hidden as well, but not where it overlaps by 0.7 alone
    assert copied(loads_E, **hidden, gathers=2) != OWNERS
    assert copied(loads_E, **hidden, overlap=0.7) != OWNERS
    assert copied(loads_E, **hidden, gathers=2, overlap=0.7) is OWNERS


def test_a_copy_that_leaves_another_rank_as_busy_is_not_made():
    """A copy saves rank 0 five slots for 4.5; but rank 1 is as busy, and with its copy that makes
    7.5 slots and 4.5 against 10."""
    owners = Placement.from_owners([0, 1, 2], 3)
    assert copied([10, 10, 0], owners, copy_s=6.0) is owners
    assert copied([10, 10, 0], owners, copy_s=0.5) != owners


def test_load_moves_between_holders_before_another_copy_is_made():
    # expert 0 goes to ranks 1 and 2; what rank 1 then has too much of, rank 2 takes over as well
    owners = Placement.from_owners([0, 1, 2], 3)
    assert copied([90, 30, 0], owners).holders == ((0, 1, 2), (1,), (2,))


def test_nothing_is_copied_where_loads_are_even_or_memory_is_short():
    assert copied([25, 26, 25, 25]) is OWNERS
    assert copied([0, 0, 0, 0]) is OWNERS
    assert copied([46, 44, 5, 5], slots_per_rank=0) is OWNERS


@settings(max_examples=60)
@given(st.data())
def test_copies_never_make_a_step_longer(data):
    """Busiest rank's slots after balanced routing."""
    world_size = data.draw(st.integers(1, 4))
    num_experts = data.draw(st.integers(1, 8))
    owners = Placement.from_owners(
        [data.draw(st.integers(0, world_size - 1)) for _ in range(num_experts)], world_size
    )
    counts_E = np.array([data.draw(st.integers(0, 50)) for _ in range(num_experts)])
    counts_WE = np.zeros((world_size, num_experts), dtype=np.int64)
    counts_WE[0] = counts_E
    copy_s, slots = data.draw(st.floats(1e-3, 20) | st.just(0.0)), data.draw(st.integers(0, 3))
    placement = copied(counts_E, owners, copy_s=copy_s, slots_per_rank=slots)
    assert placement.contains(owners)
    for rank in range(world_size):
        copies = len(placement.chunks_on(rank)) - len(owners.chunks_on(rank))
        assert copies <= slots

    def busiest(chosen: Placement) -> int:
        nodes = (0,) * world_size
        return int(route(counts_WE, chosen, nodes, rule="weighted").sum((0, 1)).max())

    made = sum(len(ranks) for ranks in placement.holders) - num_experts
    if made:
        assert busiest(placement) < busiest(owners)


def test_loads_that_are_not_of_this_layer_are_refused():
    with pytest.raises(ValueError, match="expected both"):
        copied([1, 1, 1])
