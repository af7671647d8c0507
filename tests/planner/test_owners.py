"""Swaps of owners, by hand and against every single swap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectives.placement import Placement
from hecate.planner.owners import imbalance, swap_owners

OWNERS = Placement.from_owners([0, 0, 1, 1], 2)


def test_imbalance_by_hand():
    assert imbalance(np.array([45.0, 45, 5, 5]), OWNERS) == pytest.approx(1.8)
    assert imbalance(np.zeros(4), OWNERS) == 1.0


def test_one_swap_evens_a_hot_rank_out():
    swapped = swap_owners(np.array([45.0, 45, 5, 5]), OWNERS, most_swaps=8)
    assert swapped.owners == (1, 0, 0, 1)


def test_nobody_moves_where_no_swap_helps():
    assert swap_owners(np.array([25.0, 25, 25, 25]), OWNERS, most_swaps=8) is OWNERS
    # one expert has everything: wherever it is, its rank has everything
    assert swap_owners(np.array([90.0, 0, 0, 0]), OWNERS, most_swaps=8) is OWNERS
    assert swap_owners(np.array([45.0, 45, 5, 5]), OWNERS, most_swaps=0) is OWNERS


@settings(max_examples=60)
@given(st.data())
def test_every_rank_keeps_its_number_and_no_single_swap_is_left(data):
    world_size = data.draw(st.integers(1, 4))
    num_experts = data.draw(st.integers(1, 8))
    owners = Placement.from_owners(
        [data.draw(st.integers(0, world_size - 1)) for _ in range(num_experts)], world_size
    )
    loads_E = np.array([float(data.draw(st.integers(0, 50))) for _ in range(num_experts)])
    swapped = swap_owners(loads_E, owners, most_swaps=100)
    for rank in range(world_size):
        assert len(swapped.chunks_on(rank)) == len(owners.chunks_on(rank))

    def load_of(owner_E: list[int], rank: int) -> float:
        return float(sum(loads_E[e] for e, owner in enumerate(owner_E) if owner == rank))

    after = list(swapped.owners)
    loads = [load_of(after, rank) for rank in range(world_size)]
    high = loads.index(max(loads))
    for one, other in itertools.combinations(range(num_experts), 2):
        if high in (after[one], after[other]) and after[one] != after[other]:
            tried = list(after)
            tried[one], tried[other] = tried[other], tried[one]
            pair = {after[one], after[other]}
            assert max(load_of(tried, rank) for rank in pair) >= loads[high]
