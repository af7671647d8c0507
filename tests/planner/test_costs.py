"""Predicted seconds, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from collectives.topology import Link, Topology
from hecate.planner.costs import (
    StepCosts,
    exposed_s,
    predicted_step_s,
    rank_loads,
    transfer_copies,
)
from hecate.planner.plan import Replicas

LOADS = np.array([[90.0, 10.0, 20.0, 0.0]])
OWNERS = np.array([[0, 0, 1, 3]], dtype=np.int32)
TOPOLOGY = Topology((0, 0, 1, 1), inside=Link(100.0, 0.0), across=Link(10.0, 0.0))
COPIES = Replicas.of([(0, 0, 1), (0, 0, 2), (0, 0, 3)])


def test_an_expert_is_dealt_to_its_holders_alike_or_levelled() -> None:
    assert rank_loads(LOADS, OWNERS, Replicas.none(), 4).tolist() == [[100, 20, 0, 0]]
    even = rank_loads(LOADS, OWNERS, COPIES, 4, levelled=False)
    assert even.tolist() == [[32.5, 42.5, 22.5, 22.5]]
    assert rank_loads(LOADS, OWNERS, COPIES, 4).tolist() == [[30, 30, 30, 30]]


def test_levelling_never_raises_the_busiest_rank_and_keeps_the_total() -> None:
    rng = np.random.default_rng(2)
    for _ in range(60):
        loads, owners = rng.integers(0, 99, (2, 6)) * 1.0, rng.integers(0, 4, (2, 6))
        copies = {
            (y, e, r)
            for y, e, r in rng.integers(0, [2, 6, 4], (8, 3)).tolist()
            if owners[y, e] != r
        }
        chosen = Replicas.of(sorted(copies))
        even = rank_loads(loads, owners.astype(np.int32), chosen, 4, levelled=False)
        level = rank_loads(loads, owners.astype(np.int32), chosen, 4)
        assert (level.max(1) <= even.max(1) + 1e-9).all()
        assert level.sum(1) == pytest.approx(loads.sum(1)) and (level >= -1e-9).all()


def test_an_expert_crosses_to_a_node_once() -> None:
    rank_Y, node_Y = transfer_copies(COPIES, OWNERS, TOPOLOGY)
    # rank 0 sends to ranks 1 and 2, rank 2 passes on to rank 3
    assert (rank_Y.tolist(), node_Y.tolist()) == ([2], [1])


def test_seconds_are_the_busiest_ranks_and_what_attention_does_not_hide() -> None:
    costs = StepCosts(
        slot_s=0.1, gather_bytes=10, reduce_bytes=20, hidden_gather_s=0.4, launch_s=0.05
    )
    # gather: max(2 x 10 / 100, 1 x 10 / 10) + 0.05 - 0.4; reduction: max(0.4, 2) + 0.05
    assert exposed_s(COPIES, OWNERS, TOPOLOGY, costs).tolist() == pytest.approx([0.65 + 2.05])
    assert exposed_s(Replicas.none(), OWNERS, TOPOLOGY, costs).tolist() == [0]
    assert predicted_step_s(LOADS, OWNERS, COPIES, TOPOLOGY, costs) == pytest.approx(3 + 2.7)
    assert predicted_step_s(LOADS, OWNERS, Replicas.none(), TOPOLOGY, costs) == 10


def test_attention_hides_what_overlaps_with_it() -> None:
    costs = StepCosts(
        slot_s=0.1, gather_bytes=10, reduce_bytes=20, hidden_gather_s=0.4, overlap=0.5, gathers=2
    )
    # each gather: 1 s, of which half of 0.4 costs nothing; the reduction: 2 s beside nothing
    assert costs.exposed_s(2, 1, TOPOLOGY) == pytest.approx(2 * 0.8 + 2)
    assert costs.exposed_s(0, 0, TOPOLOGY) == 0


def test_a_transfer_may_slow_attention_by_more_than_its_own_time() -> None:
    costs = StepCosts(
        slot_s=0.1, gather_bytes=10, reduce_bytes=20, hidden_gather_s=0.4, overlap=-1.0
    )
    # the gather's second and another 0.4 of attention beside it; the reduction: 2 s
    assert costs.exposed_s(2, 1, TOPOLOGY) == pytest.approx(1.4 + 2)


@pytest.mark.parametrize(
    ("overlap", "hidden_s", "cheaper"),
    [
        (1.0, 9.0, True),
        (1.0, 0.0, False),
        (-1.0, 9.0, False),
        # of a late copy's 3 s a gather ahead saves 0.2, or 0.4: at least 0.3 it must be
        (0.5, 0.4, False),
        (1.0, 0.4, True),
    ],
)
def test_a_copy_ahead_is_cheaper_where_hiding_saves_more_than_guessing_costs(
    overlap: float, hidden_s: float, cheaper: bool
) -> None:
    costs = StepCosts(
        slot_s=0.1, gather_bytes=10, reduce_bytes=20, hidden_gather_s=hidden_s, overlap=overlap
    )
    assert costs.cheaper_ahead(TOPOLOGY) is cheaper


def test_a_late_copy_takes_the_slowest_link_that_ranks_have() -> None:
    costs = StepCosts(slot_s=0.1, gather_bytes=10, reduce_bytes=20, hidden_gather_s=9.0)
    assert costs.late_copy_s(TOPOLOGY) == pytest.approx(3.0)
    inside, across = TOPOLOGY.inside, TOPOLOGY.across
    assert costs.late_copy_s(Topology((0, 0), inside, across)) == pytest.approx(0.3)
    assert costs.late_copy_s(Topology((0, 1), inside, across)) == pytest.approx(3.0)


def test_the_overlap_degree_is_what_travels_meanwhile() -> None:
    # 1 ms at 50 GB/s, experts of 4.7 MB: 10.6 of them, 8.5 with the margin
    costs = StepCosts(slot_s=0.1, gather_bytes=4_700_000, reduce_bytes=1, hidden_gather_s=1e-3)
    topology = Topology((0, 0, 1, 1), inside=Link(300e9, 0.0), across=Link(50e9, 0.0))
    assert costs.overlap_experts(topology, safety=1.0) == 10
    assert costs.overlap_experts(topology) == 8


def test_costs_that_are_no_costs_are_refused() -> None:
    with pytest.raises(ValueError, match="slot_s is -1"):
        StepCosts(slot_s=-1, gather_bytes=1, reduce_bytes=1)
    with pytest.raises(ValueError, match="overlap is 1.5; expected a finite number up to 1"):
        StepCosts(slot_s=1, gather_bytes=1, reduce_bytes=1, overlap=1.5)
