"""Routings with prescribed loads: counts by hand, and no token that chooses an expert twice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hecate.bench.routing_traces import (
    choices_of,
    counts_of,
    hot_few,
    hot_pair,
    hot_rank,
    one_hot,
    skewed,
    some_idle,
    synthetic_traces,
)


def test_a_hot_rank_by_hand():
    # of 4 experts on 2 ranks, rank 1's two share 95 % of the slots: 1.9 times the mean
    assert hot_rank(4, 2, 1, 1.9) == pytest.approx([0.025, 0.025, 0.475, 0.475])
    assert hot_rank(4, 2, 0, 1.0) == pytest.approx([0.25] * 4)
    with pytest.raises(ValueError, match=r"imbalance of 2\.5 over 2 ranks"):
        hot_rank(4, 2, 0, 2.5)


def test_half_of_a_rank_is_hot_by_hand():
    for turn in range(20):
        shares_E = hot_few(8, 2, turn, 3, 1.9)
        hot = np.flatnonzero(shares_E > 0.4)
        assert len(hot) == 2
        assert shares_E[hot] == pytest.approx([0.475, 0.475])
        owner = set((hot // 4).tolist())
        assert len(owner) == 1, "both belong to one rank"
        cold = [e for e in range(8) if e // 4 not in owner]
        assert shares_E[cold] == pytest.approx([0.0125] * 4)


def test_no_placement_balances_every_turn():
    # each of the 35 ways to give both of two ranks four of eight experts
    turns = [hot_few(8, 2, turn, 0, 1.9) for turn in range(40)]
    for others in itertools.combinations(range(1, 8), 3):
        loads = [shares_E[[0, *others]].sum() for shares_E in turns]
        assert max(max(load, 1 - load) * 2 for load in loads) > 1.8


def test_one_hot_and_idle_experts_by_hand():
    assert one_hot(5, 2, 0.96) == pytest.approx([0.01, 0.01, 0.96, 0.01, 0.01])
    assert some_idle(4, 2) == pytest.approx([0, 0, 0.5, 0.5])


def test_a_hot_pair_and_a_skew_by_hand():
    # layer 1 begins at a quarter of the experts
    assert hot_pair(8, 1, 0.7) == pytest.approx([0.05, 0.05, 0.35, 0.05, 0.05, 0.05, 0.35, 0.05])
    assert hot_pair(8, 2, 0.7).tolist() == np.roll(hot_pair(8, 1, 0.7), 2).tolist()
    shares_E = skewed(4, 3, 1.0)  # 1, 1/2, 1/3, 1/4 of 25/12
    assert sorted(shares_E) == pytest.approx([3 / 25, 4 / 25, 6 / 25, 12 / 25])
    assert any(skewed(4, layer, 1.0).tolist() != shares_E.tolist() for layer in range(3))


def test_counts_by_hand():
    assert counts_of(np.array([0.5, 0.3, 0.2]), 5, 1).tolist() == [3, 1, 1]  # 2.5, 1.5, 1.0
    # expert 0 wants 16 of 20 slots, but 10 tokens choose it once each; the rest is shared 1 : 1
    assert counts_of(np.array([0.8, 0.1, 0.1]), 10, 2).tolist() == [10, 5, 5]
    assert counts_of(np.array([1.0, 0.0]), 3, 2).tolist() == [3, 3]
    assert counts_of(np.array([0.1, 0.9]), 1, 2).tolist() == [1, 1], "0.2 + 0.8 is a little over 1"


@settings(max_examples=80)
@given(st.data())
def test_choices_have_their_counts(data):
    num_experts = data.draw(st.integers(2, 8))
    top_k = data.draw(st.integers(1, min(3, num_experts)))
    tokens = data.draw(st.integers(1, 20))
    weights = data.draw(
        st.lists(st.integers(0, 9), min_size=num_experts, max_size=num_experts).filter(any)
    )
    shares_E = np.array(weights) / sum(weights)
    counts_E = counts_of(shares_E, tokens, top_k)
    assert counts_E.sum() == tokens * top_k
    assert counts_E.max() <= tokens
    choices_TK = choices_of(counts_E, top_k, seed=3)
    assert choices_TK.shape == (tokens, top_k)
    assert np.bincount(choices_TK.flatten(), minlength=num_experts).tolist() == counts_E.tolist()
    assert all(len(set(row)) == top_k for row in choices_TK.tolist())


def test_every_trace_shares_out_everything_and_moves_as_it_says():
    for trace in synthetic_traces(16, 2, 2):
        shares = [trace.shares(step, 1) for step in range(40)]
        for shares_E in shares:
            assert shares_E.shape == (16,)
            assert shares_E.sum() == pytest.approx(1)
            assert shares_E.min() >= 0
        moves = any(not np.array_equal(shares[0], later) for later in shares)
        assert moves == (trace.name in ("rotating", "burst"))
