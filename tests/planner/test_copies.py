"""Copies that pay for themselves: by hand, and against doing nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectives.placement import Placement
from hecate.planner.copies import StepCosts, choose_copies
from hecate.planner.quotas import route

OWNERS = Placement.from_owners([0, 0, 1, 1], 2)
FREE = StepCosts(slot_s=1.0, copy_s=0.0, free_copies=0, slots_per_rank=8)


def costs(copy_s: float = 0.0, slots_per_rank: int = 8, free_copies: int = 0) -> StepCosts:
    return StepCosts(1.0, copy_s, free_copies, slots_per_rank)


def test_the_smallest_expert_that_evens_two_ranks_out_is_copied():
    # rank 0 has 90, rank 1 has 10: 40 must move, and expert 1 has just enough
    assert choose_copies(np.array([46.0, 44, 5, 5]), OWNERS, FREE).holders == (
        (0,),
        (0, 1),
        (1,),
        (1,),
    )


def test_where_none_is_enough_the_largest_goes_and_then_another():
    # 50 must move: first the 30 of expert 0, then the 20 of expert 2, which is just enough
    owners = Placement.from_owners([0, 0, 0, 0, 1], 2)
    loads_E = np.array([30.0, 30, 20, 20, 0])
    copied = choose_copies(loads_E, owners, FREE)
    assert copied.holders == ((0, 1), (0,), (0, 1), (0,), (1,))


def test_a_copy_must_save_more_than_it_costs():
    loads_E = np.array([46.0, 44, 5, 5])
    assert choose_copies(loads_E, OWNERS, costs(copy_s=39.9)) != OWNERS
    assert choose_copies(loads_E, OWNERS, costs(copy_s=40.0)) is OWNERS
    # what attention hides costs nothing
    assert choose_copies(loads_E, OWNERS, costs(copy_s=1e9, free_copies=1)) != OWNERS


def test_a_copy_that_leaves_another_rank_as_busy_is_not_made():
    """A copy saves rank 0 five slots for 4.5; but rank 1 is as busy, and with its copy that makes
    7.5 slots and 4.5 against 10."""
    owners = Placement.from_owners([0, 1, 2], 3)
    loads_E = np.array([10.0, 10, 0])
    assert choose_copies(loads_E, owners, costs(copy_s=4.5)) is owners
    assert choose_copies(loads_E, owners, costs(copy_s=2.4)).holders == ((0, 2), (0, 1), (2,))


def test_nothing_is_copied_where_loads_are_even_or_memory_is_short():
    assert choose_copies(np.array([25.0, 27, 25, 23]), OWNERS, FREE) is OWNERS
    assert choose_copies(np.zeros(4), OWNERS, FREE) is OWNERS
    skewed = np.array([46.0, 44, 5, 5])
    assert choose_copies(skewed, OWNERS, costs(slots_per_rank=0)) is OWNERS


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_copies_never_make_a_step_longer(data):
    """Busiest rank's slots after balanced routing, plus what the copies of a rank cost."""
    world_size = data.draw(st.integers(1, 4))
    num_experts = data.draw(st.integers(1, 8))
    owners = Placement.from_owners(
        [data.draw(st.integers(0, world_size - 1)) for _ in range(num_experts)], world_size
    )
    counts_E = np.array([data.draw(st.integers(0, 50)) for _ in range(num_experts)])
    counts_WE = np.zeros((world_size, num_experts), dtype=np.int64)
    counts_WE[0] = counts_E
    copy_s, slots = data.draw(st.floats(0, 20)), data.draw(st.integers(0, 3))
    placement = choose_copies(
        counts_E.astype(np.float64), owners, costs(copy_s=copy_s, slots_per_rank=slots)
    )
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
    with pytest.raises(ValueError, match="shape mismatch|could not be broadcast"):
        choose_copies(np.ones(3), OWNERS, FREE)
