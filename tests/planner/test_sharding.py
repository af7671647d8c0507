"""Sharding by load: worked by hand, against all placements of small cases, and its promises."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hecate.planner.sharding import busiest_slots, net_gain_slots, shard_by_load, swap_by_load


def ids(rows):
    return np.array(rows, dtype=np.int32)


def even_owners(layers, experts, ranks):
    return ids([[e * ranks // experts for e in range(experts)]] * layers)


@st.composite
def cases(draw):
    layers, experts = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    ranks = draw(st.integers(1, 5))
    row = st.lists(st.integers(0, 40), min_size=experts, max_size=experts)
    loads = np.array([draw(row) for _ in range(layers)], dtype=np.float64)
    owner = st.lists(st.integers(0, ranks - 1), min_size=experts, max_size=experts)
    owners = ids([draw(owner) for _ in range(layers)])
    width = draw(st.integers(1, experts))
    owners[draw(st.integers(0, layers - 1)), width:] = -1  # a layer with fewer experts
    nodes = sorted(draw(st.lists(st.integers(0, 1), min_size=ranks, max_size=ranks)))
    nodes = [node - nodes[0] for node in nodes]
    return loads, owners, nodes, draw(st.integers(0, experts))


@settings(max_examples=60)
@given(case=cases(), move_slots=st.sampled_from([0.0, 0.5, 3.0]))
def test_memory_is_equal_and_every_expert_has_an_owner(case, move_slots):
    loads, owners, nodes, overlap = case
    new = shard_by_load(loads, owners, nodes, overlap_experts=overlap, move_slots=move_slots)
    assert ((new >= 0) == (owners >= 0)).all()
    if new is owners:
        return
    owned = np.bincount(new[new >= 0], minlength=len(nodes))
    assert owned.max() - owned.min() <= 1
    assert net_gain_slots(loads, owners, new, overlap, len(nodes), move_slots) > 0
    again = shard_by_load(loads, owners, nodes, overlap_experts=overlap, move_slots=move_slots)
    assert (again == new).all()


@settings(max_examples=60)
@given(case=cases(), move_slots=st.sampled_from([0.0, 0.5, 3.0]))
def test_swaps_keep_each_rank_s_count_and_pay(case, move_slots):
    loads, owners, nodes, overlap = case
    ranks = len(nodes)
    new = swap_by_load(loads, owners, ranks, overlap_experts=overlap, move_slots=move_slots)
    for old_E, new_E in zip(owners, new, strict=True):
        assert sorted(old_E) == sorted(new_E)
    if new is not owners:
        assert net_gain_slots(loads, owners, new, overlap, ranks, move_slots) > 0


@settings(max_examples=60)
@given(
    loads_E=st.lists(st.integers(0, 30), min_size=4, max_size=4),
    move_slots=st.sampled_from([0.0, 2.0]),
)
def test_swaps_of_two_pairs_find_the_best_there_is(loads_E, move_slots):
    loads, owners = np.array([loads_E], dtype=np.float64), ids([[0, 0, 1, 1]])
    best = 0.0
    for first in itertools.combinations(range(4), 2):
        owner = [0 if e in first else 1 for e in range(4)]
        busiest = max(sum(n for n, o in zip(loads_E, owner, strict=True) if o == r) for r in (0, 1))
        before = max(loads_E[0] + loads_E[1], loads_E[2] + loads_E[3])
        moves = sum(a != b for a, b in zip(owner, [0, 0, 1, 1], strict=True))
        best = max(best, before - busiest - move_slots * moves)
    new = swap_by_load(loads, owners, 2, move_slots=move_slots)
    assert net_gain_slots(loads, owners, new, 0, 2, move_slots) == pytest.approx(best)


def test_cold_experts_by_hand():
    # the 9 is copied anyway; 6 to rank 0, 5 to rank 1, 2 to rank 1 (5 < 6), 1 to rank 0 (6 < 7),
    # the 0 to rank 0, the first of equals; rank 1 has a slot left for the 9
    loads = np.array([[9.0, 6, 5, 2, 1, 0]])
    owners = ids([[0, 1, 1, 1, 0, 0]])
    new = shard_by_load(loads, owners, [0, 0], overlap_experts=1)
    assert new.tolist() == [[1, 0, 1, 1, 0, 0]]
    assert busiest_slots(loads, owners, 1, 2).tolist() == [13]
    assert busiest_slots(loads, new, 1, 2).tolist() == [11.5]  # the mean, as 7 on each is less


def test_a_layer_may_lie_unevenly_where_another_makes_up_for_it():
    # layer 0: one expert of 10 and three of 3; layer 1: all alike
    loads = np.array([[10.0, 3, 3, 3], [1, 1, 1, 1]])
    new = shard_by_load(loads, even_owners(2, 4, 2), [0, 0], overlap_experts=0)
    assert busiest_slots(loads, new, 0, 2)[0] == 10  # alone on its rank, which takes 3 of layer 1
    assert np.bincount(new[0]).tolist() in ([1, 3], [3, 1])
    assert np.bincount(new.ravel()).tolist() == [4, 4]


def test_nodes_are_evened_out_before_ranks():
    # two nodes of two ranks; the four experts of 5 lie on node 0
    loads = np.array([[5.0, 5, 5, 5, 0, 0, 0, 0]])
    new = shard_by_load(loads, even_owners(1, 8, 4), [0, 0, 1, 1], overlap_experts=0)
    assert busiest_slots(loads, new, 0, 4).tolist() == [5]
    assert np.bincount(new[0] // 2, loads[0]).tolist() == [10, 10]


def test_ranks_are_renamed_so_that_little_moves():
    # dealt out: 10, 4, 2 to rank 0 and 9, 5, 1 to rank 1, but 10 and 4 are rank 1's already
    loads = np.array([[10.0, 9, 5, 4, 2, 1]])
    owners = ids([[1, 0, 1, 1, 0, 0]])
    new = shard_by_load(loads, owners, [0, 0], overlap_experts=0)
    assert new.tolist() == [[1, 0, 0, 1, 1, 0]]


def test_moves_that_cost_more_than_they_gain_are_not_made():
    loads, owners = np.array([[6.0, 4, 3, 1]]), ids([[0, 0, 1, 1]])  # 10 | 4; best 7 | 7, 2 moves
    for shard in (
        lambda cost: shard_by_load(loads, owners, [0, 0], overlap_experts=0, move_slots=cost),
        lambda cost: swap_by_load(loads, owners, 2, move_slots=cost),
    ):
        assert busiest_slots(loads, shard(1.4), 0, 2).tolist() == [7]
        assert shard(1.5) is owners


def test_experts_that_are_copied_anyway_move_nobody():
    loads, owners = np.array([[50.0, 40, 3, 3]]), ids([[0, 0, 1, 1]])
    assert shard_by_load(loads, owners, [0, 0], overlap_experts=4) is owners
    assert swap_by_load(loads, owners, 2, overlap_experts=2) is owners
    assert swap_by_load(loads, owners, 2, overlap_experts=0) is not owners


def test_owners_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"owners from 0 to 2; expected ranks in \[0, 2\)"):
        swap_by_load(np.zeros((1, 2)), ids([[0, 2]]), 2)
    with pytest.raises(ValueError, match=r"shape \(1, 3\) and owners of shape \(1, 2\)"):
        shard_by_load(np.zeros((1, 3)), ids([[0, 1]]), [0, 0], overlap_experts=0)
