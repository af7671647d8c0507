"""Algorithm 1 against itself word by word, by hand, and the choice by time against both rules."""

from __future__ import annotations

import numpy as np
import pytest
from algorithm1 import algorithm_1
from hypothesis import given, settings
from hypothesis import strategies as st

from collectives.topology import Link, Topology
from hecate.planner.costs import StepCosts, predicted_layer_s, predicted_step_s
from hecate.planner.materialization import NO_LIMIT, materialize_by_load, materialize_by_time
from hecate.planner.plan import Replicas


def problem(seed: int, most_ranks: int = 10):  # type: ignore[no-untyped-def]
    """Loads of one of three kinds, owners, nodes of unequal size and in any order."""
    rng = np.random.default_rng(seed)
    layers, experts, ranks = (int(n) for n in rng.integers(1, [4, 12, most_ranks + 1]))
    nodes = int(rng.integers(1, min(ranks, 4) + 1))
    node_of_rank = np.concatenate([np.arange(nodes), rng.integers(0, nodes, ranks - nodes)])
    rng.shuffle(node_of_rank)
    shape = (layers, experts)
    loads = (
        rng.integers(0, 50, shape) * 1.0,
        rng.integers(0, 4, shape) / 5,
        rng.dirichlet(np.full(experts, 0.2), layers) * 1000,
    )[int(rng.integers(3))]
    owners = rng.integers(0, ranks, shape).astype(np.int32)
    return rng, loads, owners, tuple(node_of_rank.tolist())


@settings(max_examples=300)
@given(st.integers(0, 1 << 30))
def test_it_is_algorithm_1(seed: int) -> None:
    rng, loads, owners, nodes = problem(seed)
    t, m = int(rng.integers(0, loads.shape[1] + 2)), int(rng.integers(0, 5))
    receive = int(rng.integers(0, 6)) if rng.random() < 0.3 else NO_LIMIT
    send = int(rng.integers(0, 6)) if rng.random() < 0.4 else NO_LIMIT
    found = materialize_by_load(
        loads,
        owners,
        nodes,
        overlap_experts=t,
        slots_per_rank=m,
        receive_budget=receive,
        send_budget=send,
    )
    assert found.triples() == algorithm_1(loads, owners, nodes, t, m, receive, send, 1.05)


def by_load(loads, owners, nodes, t, m, **budgets) -> list[tuple[int, int, int]]:  # type: ignore[no-untyped-def]
    return materialize_by_load(
        np.array(loads, dtype=float),
        np.array(owners, dtype=np.int32),
        nodes,
        overlap_experts=t,
        slots_per_rank=m,
        **budgets,
    ).triples()


def test_with_memory_enough_hot_experts_go_everywhere() -> None:
    assert by_load([[9, 1, 8, 0]], [[0, 0, 1, 2]], (0, 0, 0), 2, 2) == [
        (0, 0, 1), (0, 0, 2), (0, 2, 0), (0, 2, 2),
    ]  # fmt: skip


def test_slots_follow_load_over_holders_and_nodes_that_lack_the_expert() -> None:
    # Four slots: 60, 60/2, 60/3 for expert 0, then 12 for expert 1 against 15 for expert 0, which
    # has one copy on every rank by then. Expert 0 goes to the other node first.
    loads, owners = [[60, 12, 0, 0]], [[0, 1, 2, 3]]
    assert by_load(loads, owners, (0, 0, 1, 1), 2, 1) == [
        (0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 1, 0),
    ]  # fmt: skip
    assert by_load(loads, owners, (0, 0, 1, 1), 1, 1, send_budget=0) == [(0, 0, 1)]


def test_a_layer_that_is_balanced_is_left_alone() -> None:
    owners = [[0, 0, 1, 1], [0, 0, 1, 1]]
    assert by_load([[52, 52, 50, 50], [60, 60, 50, 50]], owners, (0, 0), 1, 1) == [(1, 0, 1)]
    assert by_load([[0, 0, 0, 0]], owners[:1], (0, 0), 2, 2) == []


def test_many_ranks_keep_their_budgets_and_hold_nothing_twice() -> None:
    rng = np.random.default_rng(3)
    loads, owners = rng.integers(0, 9999, (3, 64)) ** 2 * 1.0, rng.integers(0, 512, (3, 64))
    nodes = tuple(rank // 8 for rank in range(512))
    found = by_load(loads, owners, nodes, 16, 3, send_budget=9)
    assert found == sorted(set(found))
    assert all(owners[layer, expert] != rank for layer, expert, rank in found)
    taken = np.zeros((3, 512), dtype=int)
    np.add.at(taken, tuple(np.array([(y, r) for y, _, r in found]).T), 1)
    assert taken.max() == 3
    crossings = {(y, e, r // 8) for y, e, r in found if owners[y, e] // 8 != r // 8}
    sent = np.zeros((3, 64), dtype=int)
    for layer, expert, _ in crossings:
        sent[layer, owners[layer, expert] // 8] += 1
    assert sent.max() == 9


@pytest.mark.parametrize(
    ("loads", "owners", "found"),
    [
        ([[1.0, -1.0]], [[0, 1]], "negative"),
        ([[1.0, np.nan]], [[0, 1]], "not finite"),
        ([[1.0, 1.0]], [[0, 2]], "owners from 0 to 2"),
        ([[1.0, 1.0]], [[0]], "expected both"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(loads, owners, found) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=found):
        by_load(loads, owners, (0, 0), 1, 1)


@settings(max_examples=80)
@given(st.integers(0, 1 << 30))
def test_by_time_no_layer_is_predicted_to_be_slower(seed: int) -> None:
    rng, loads, owners, nodes = problem(seed)
    topology = Topology(nodes, inside=Link(1e3, 0.0), across=Link(2e2, 0.0))
    costs = StepCosts(
        slot_s=float(rng.choice([0.01, 0.1, 1])),
        gather_bytes=100,
        reduce_bytes=200,
        hidden_gather_s=float(rng.choice([0, 1.0])),
        hidden_reduce_s=float(rng.choice([0, 2.0])),
    )
    limits = {
        "overlap_experts": int(rng.integers(1, 6)),
        "slots_per_rank": int(rng.integers(1, 4)),
        "send_budget": int(rng.integers(1, 6)),
    }
    by_time = materialize_by_time(loads, owners, topology, costs, **limits)
    ours = predicted_layer_s(loads, owners, by_time, topology, costs)
    without = predicted_layer_s(loads, owners, Replicas.none(), topology, costs)
    assert (ours <= without).all()
    triples = by_time.triples()
    assert triples == sorted(set(triples))
    assert all(owners[layer, expert] != rank for layer, expert, rank in triples)
    for layer in range(len(loads)):
        mine = [(e, r) for y, e, r in triples if y == layer]
        assert len({e for e, _ in mine}) <= limits["overlap_experts"]
        for rank in range(len(nodes)):
            assert sum(r == rank for _, r in mine) <= limits["slots_per_rank"]
        crossing = {(e, nodes[r]) for e, r in mine if nodes[owners[layer, e]] != nodes[r]}
        for node in set(nodes):
            sent = sum(nodes[owners[layer, e]] == node for e, _ in crossing)
            assert sent <= limits["send_budget"]


def test_by_time_a_copy_must_pay_for_itself() -> None:
    loads, owners = np.array([[30.0, 10.0]]), np.array([[0, 1]], dtype=np.int32)
    topology = Topology.single_node(2, Link(100.0, 0.0))

    def copies(slot_s: float) -> list[tuple[int, int, int]]:
        costs = StepCosts(slot_s=slot_s, gather_bytes=100, reduce_bytes=100)
        return materialize_by_time(
            loads, owners, topology, costs, overlap_experts=2, slots_per_rank=2
        ).triples()

    # 10 slots move away from rank 0; the copy and its gradient take two seconds
    assert copies(0.19) == []
    assert copies(0.21) == [(0, 0, 1)]


def test_by_time_large_worlds_choose_among_forms_of_algorithm_1() -> None:
    rng = np.random.default_rng(5)
    loads, owners = rng.pareto(1, (2, 32)) * 1000, rng.integers(0, 96, (2, 32)).astype(np.int32)
    nodes = tuple(rank // 8 for rank in range(96))
    topology = Topology(nodes, inside=Link(1e3, 0.0), across=Link(2e2, 0.0))
    costs = StepCosts(slot_s=0.01, gather_bytes=100, reduce_bytes=200)
    limits = {"overlap_experts": 8, "slots_per_rank": 2}
    by_time = materialize_by_time(loads, owners, topology, costs, **limits)
    of_load = materialize_by_load(loads, owners, nodes, **limits)
    ours, theirs, nothing = (
        predicted_step_s(loads, owners, each, topology, costs, levelled=False)
        for each in (by_time, of_load, Replicas.none())
    )
    assert ours <= theirs and ours < nothing
