"""Quotas: worked by hand, and against a search that knows nothing of groups or paths of ranks."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectives.placement import Placement
from hecate.planner.quotas import route

RULES = ("even", "weighted")


def quotas(counts_WE, holders, rule, nodes=None):
    counts_WE = np.array(counts_WE, dtype=np.int64)
    placement = Placement(tuple(holders), len(counts_WE))
    return route(counts_WE, placement, nodes or [0] * len(counts_WE), rule=rule)


@st.composite
def cases(draw, most_ranks=4, most_experts=4, most_slots=7):
    ranks = draw(st.integers(1, most_ranks))
    experts = draw(st.integers(1, most_experts))
    some_ranks = st.sets(st.integers(0, ranks - 1), min_size=1)
    holders = tuple(tuple(sorted(draw(some_ranks))) for _ in range(experts))
    row = st.lists(st.integers(0, most_slots), min_size=experts, max_size=experts)
    counts_WE = [draw(row) for _ in range(ranks)]
    first_on_second_node = draw(st.integers(1, ranks))
    nodes = [int(rank >= first_on_second_node) for rank in range(ranks)]
    return counts_WE, holders, nodes


def off_rank_and_across(quotas_WEW, nodes):
    """Slots that leave their rank, and those of them that leave their node."""
    flows_WW = np.asarray(quotas_WEW).sum(1)
    ranks = range(len(nodes))
    off = sum(int(flows_WW[s, r]) for s in ranks for r in ranks if s != r)
    across = sum(int(flows_WW[s, r]) for s in ranks for r in ranks if nodes[s] != nodes[r])
    return off, across


def best_by_single_slots(counts_WE, holders, nodes):
    """(busiest rank, off rank, across nodes) of the best split.

    Each slot is sent in turn along the cheapest way through slots that are placed already, with
    Bellman-Ford over (source, expert) pairs and ranks; limits are tried from 0 up.
    """
    ranks = range(len(counts_WE))
    total = sum(map(sum, counts_WE))

    def cost(source, rank):
        return 0 if source == rank else 1000 + (nodes[source] != nodes[rank])

    for limit in range(total + 1):
        placed = {}  # (source, expert, rank) -> slots
        load = [0] * len(counts_WE)
        pairs = [(s, e) for s in ranks for e in range(len(holders)) for _ in range(counts_WE[s][e])]
        feasible = True
        for start in pairs:
            far = {start: 0}
            via = {}
            changed = True
            while changed:
                changed = False
                for (s, e), here in [item for item in far.items() if isinstance(item[0], tuple)]:
                    for r in holders[e]:
                        if here + cost(s, r) < far.get(r, 10**9):
                            far[r], via[r], changed = here + cost(s, r), (s, e), True
                for (s, e, r), slots in placed.items():
                    if slots and r in far and far[r] - cost(s, r) < far.get((s, e), 10**9):
                        far[s, e], via[s, e], changed = far[r] - cost(s, r), r, True
            ends = [(far[r], r) for r in ranks if r in far and load[r] < limit]
            if not ends:
                feasible = False
                break
            rank = min(ends)[1]
            load[rank] += 1
            while True:
                s, e = via[rank]
                placed[s, e, rank] = placed.get((s, e, rank), 0) + 1
                if (s, e) == start:
                    break
                rank = via[s, e]
                placed[s, e, rank] -= 1
        if feasible:
            result = np.zeros((len(counts_WE), len(holders), len(counts_WE)), dtype=int)
            for (s, e, r), slots in placed.items():
                result[s, e, r] = slots
            return (max(load), *off_rank_and_across(result, nodes))
    raise AssertionError("the largest limit takes everything")


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60)
@given(case=cases(most_ranks=5, most_experts=6, most_slots=50))
def test_every_slot_goes_to_one_holder(rule, case):
    counts_WE, holders, nodes = case
    result = quotas(counts_WE, holders, rule, nodes)
    assert result.dtype == np.int64 and (result >= 0).all()
    assert result.sum(2).tolist() == counts_WE
    for expert, ranks in enumerate(holders):
        others = [r for r in range(len(nodes)) if r not in ranks]
        assert not result[:, expert, others].any()


@settings(max_examples=60)
@given(case=cases())
def test_weighted_is_the_best_split_there_is(case):
    counts_WE, holders, nodes = case
    result = quotas(counts_WE, holders, "weighted", nodes)
    busiest = int(result.sum((0, 1)).max())
    found = (busiest, *off_rank_and_across(result, nodes))
    assert found == best_by_single_slots(counts_WE, holders, nodes)


@settings(max_examples=60)
@given(
    counts_WE=st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=2, max_size=2),
    holders=st.tuples(*[st.sampled_from([(0,), (1,), (0, 1)])] * 3),
)
def test_two_ranks_against_all_splits(counts_WE, holders):
    """Every split of every (source, expert) pair is tried."""
    pairs = [(s, e) for s in (0, 1) for e in range(3)]
    choices = []
    for s, e in pairs:
        count = counts_WE[s][e]
        choices.append(
            {(0,): [count], (1,): [0], (0, 1): range(count + 1)}[holders[e]]
        )  # slots that rank 0 computes
    best = (10**9, 0)
    for on_first in itertools.product(*choices):
        first = sum(on_first)
        local = sum(
            n if s == 0 else counts_WE[s][e] - n for (s, e), n in zip(pairs, on_first, strict=True)
        )
        total = int(np.sum(counts_WE))
        best = min(best, (max(first, total - first), total - local))
    result = quotas(counts_WE, holders, "weighted")
    assert (int(result.sum((0, 1)).max()), off_rank_and_across(result, [0, 0])[0]) == best


@settings(max_examples=60)
@given(case=cases(most_ranks=5, most_experts=5, most_slots=9))
def test_even_deals_to_the_nearest_holders_alike(case):
    counts_WE, holders, nodes = case
    result = quotas(counts_WE, holders, "even", nodes)
    for source, expert in itertools.product(range(len(nodes)), range(len(holders))):
        dealt = result[source, expert]
        near = [r for r in holders[expert] if r == source]
        near = near or [r for r in holders[expert] if nodes[r] == nodes[source]]
        near = near or list(holders[expert])
        assert dealt.sum() == dealt[near].sum()
        assert dealt[near].max() - dealt[near].min() <= 1


def test_even_by_hand():
    # ranks 0, 1 | 2, 3; expert 0 on 0 and 2, expert 1 on 1 and 3, expert 2 on 0 and 1
    counts_WE = [[4, 6, 1], [5, 7, 2], [8, 9, 5], [10, 3, 4]]
    result = quotas(counts_WE, [(0, 2), (1, 3), (0, 1)], "even", [0, 0, 1, 1])
    assert result[:, 0].tolist() == [[4, 0, 0, 0], [5, 0, 0, 0], [0, 0, 8, 0], [0, 0, 10, 0]]
    assert result[:, 1].tolist() == [[0, 6, 0, 0], [0, 7, 0, 0], [0, 0, 0, 9], [0, 0, 0, 3]]
    # sources 2 and 3 are far from both holders: 5 = 3 + 2, whose larger part falls on 0, 4 = 2 + 2
    assert result[:, 2].tolist() == [[1, 0, 0, 0], [0, 2, 0, 0], [3, 2, 0, 0], [2, 2, 0, 0]]


def test_remainders_fall_on_another_holder_for_each_source():
    # experts 0 and 1 lie on ranks 0 and 1; each of ranks 2 to 5 has one slot of each
    counts_WE = [[0, 0], [0, 0], [1, 1], [1, 1], [1, 1], [1, 1]]
    result = quotas(counts_WE, [(0, 1), (0, 1)], "even")
    assert result.sum((0, 1)).tolist() == [4, 4, 0, 0, 0, 0]
    assert result[:, 0].sum(0).tolist() == [2, 2, 0, 0, 0, 0]


def test_weighted_moves_slots_off_their_own_rank_only_as_far_as_balance_asks():
    # all slots are rank 0's own, and it holds what they ask for: half of them must go
    result = quotas([[10], [0]], [(0, 1)], "weighted")
    assert result[:, 0].tolist() == [[5, 5], [0, 0]]
    # an odd one stays at home
    result = quotas([[0], [11]], [(0, 1)], "weighted")
    assert result[:, 0].tolist() == [[0, 0], [5, 6]]


def test_weighted_moves_slots_that_are_away_anyway_first():
    # expert 0 on ranks 0 and 1, expert 1 on 1 alone; rank 2 has 8 slots of expert 0, rank 0 has 8
    # even: rank 0 has 8 + 4, rank 1 has 4 + 8; the mean of 24 slots over 3 ranks is out of reach
    # weighted: 12 on each of the two is the least, and all of rank 0's own stay
    counts_WE = [[8, 0], [0, 8], [8, 0]]
    result = quotas(counts_WE, [(0, 1), (1,)], "weighted")
    assert result[:, 0].tolist() == [[8, 0, 0], [0, 0, 0], [4, 4, 0]]
    # with 2 of expert 1 only, the mean of both is 9: rank 2's slots fill up rank 1
    result = quotas([[8, 0], [0, 2], [8, 0]], [(0, 1), (1,)], "weighted")
    assert result[:, 0].tolist() == [[8, 0, 0], [0, 0, 0], [1, 7, 0]]


def test_weighted_passes_slots_through_a_rank_in_between():
    # rank 0 and 1 share expert 0, ranks 1 and 2 share expert 1: 12 slots on rank 0, 6 on rank 1
    result = quotas([[12, 0], [0, 6], [0, 0]], [(0, 1), (1, 2)], "weighted")
    assert result.sum((0, 1)).tolist() == [6, 6, 6]
    assert result[0, 0].tolist() == [6, 6, 0] and result[1, 1].tolist() == [0, 0, 6]


def test_weighted_prefers_the_own_node():
    # rank 0 has 9 slots too many for it; rank 1 shares its node, rank 2 does not
    result = quotas([[9], [0], [0]], [(0, 1, 2)], "weighted", [0, 0, 1])
    assert result[0, 0].tolist() == [3, 3, 3]
    # rank 2 is below the mean by 3 and rank 1 by 3; only 3 need to go
    result = quotas(
        [[9, 0, 0], [0, 3, 0], [0, 0, 6]], [(0, 1, 2), (1,), (2,)], "weighted", [0, 0, 1]
    )
    assert result[0, 0].tolist() == [6, 3, 0]


@pytest.mark.parametrize("ranks", [11, 12])
def test_many_ranks_find_their_limit_on_the_way(ranks):
    # ranks 0 and 1 share 2 experts with 30 slots each, which no one else may compute
    counts_WE = np.zeros((ranks, 4), dtype=np.int64)
    counts_WE[0] = [30, 30, 0, 1]
    counts_WE[5, 2] = 40
    result = quotas(counts_WE, [(0, 1), (0, 1), (5, 6), (0, 2)], "weighted")
    assert result.sum((0, 1))[:7].tolist() == [30, 30, 1, 0, 0, 30, 10]


@pytest.mark.parametrize("rule", RULES)
def test_a_partition_leaves_no_choice(rule):
    result = quotas([[3, 1], [2, 5]], [(1,), (0,)], rule)
    assert result.tolist() == [[[0, 3], [1, 0]], [[0, 2], [5, 0]]]


@pytest.mark.parametrize("rule", RULES)
def test_no_slots_at_all(rule):
    assert not quotas([[0, 0], [0, 0]], [(0, 1), (1,)], rule).any()


def test_counts_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3\).*\[2, 2\]"):
        route(np.zeros((2, 3), np.int64), Placement.even(2, 2), [0, 0], rule="even")
    with pytest.raises(ValueError, match="nodes of 3 ranks; expected those of 2"):
        route(np.zeros((2, 2), np.int64), Placement.even(2, 2), [0, 0, 0], rule="even")


@pytest.mark.parametrize("ranks", [63, 64, 65])
def test_an_expert_on_the_last_of_many_ranks(ranks):
    """No number has a bit for each of so many ranks."""
    everyone = tuple(range(ranks))
    counts_WE = [[0, 2]] * (ranks - 1) + [[2, 0]]
    quotas_WEW = quotas(counts_WE, [everyone, (0, ranks - 1)], "weighted")
    loads_W = quotas_WEW.sum((0, 1))
    assert loads_W.sum() == 2 * ranks
    # only the ends hold what nearly all want, and share it
    assert sorted(loads_W[[0, -1]].tolist()) == [ranks - 1, ranks - 1]
