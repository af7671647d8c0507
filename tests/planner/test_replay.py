"""Replays worked out by hand: two ranks, four experts, owners 0 0 1 1."""

from dataclasses import replace

import numpy as np
import pytest
from scripted import Restless, Scripted

from collectives.placement import Placement
from collectives.topology import Link, Topology
from hecate.planner.costs import StepCosts
from hecate.planner.policies import ExpertParallel, Fssdp, FssdpConfig, Shadowing, ShadowingConfig
from hecate.planner.replay import (
    RoutedStep,
    deal_out,
    prediction_error,
    replay,
    total_counts,
    transfers_s,
)

# a copy takes 100 bytes there and 300 back at 100 bytes a second: 4 s, which nothing hides
COSTS = StepCosts(slot_s=1.0, gather_bytes=100, reduce_bytes=300, slots_per_rank=2)
TOPOLOGY = Topology.single_node(2, Link(100.0, 0.0))
OWNERS = (Placement.even(4, 2),)


def counts(*rows):
    return np.array(rows, dtype=np.int64)


def replayed(policy, *steps, owners=OWNERS, costs=COSTS, window=None):
    """Steps of one layer and one micro-batch each."""
    return list(replay(policy, routed_steps(*steps), owners, costs, TOPOLOGY, window=window))


def missed(step):
    """Idle copies and missed experts of each layer."""
    return [(layer.idle_copies, layer.missed_experts) for layer in step.missed]


def routed_steps(*steps):
    """Steps of one layer and one micro-batch each."""
    return [RoutedStep(number, ((each,),)) for number, each in enumerate(steps)]


HOT = counts([10, 0, 1, 1], [10, 0, 1, 1])  # expert 0: 20 of 24 slots
OTHER = counts([1, 1, 10, 0], [1, 1, 10, 0])  # expert 2: 20 of 24


def test_expert_parallelism_does_what_it_is_told():
    (step,) = replayed(ExpertParallel(), HOT)
    assert step.owned_YW.tolist() == step.computed_YW.tolist() == [[20, 4]]
    assert step.informed_YW.tolist() == [[20, 4]]
    assert (step.moves, step.planned_copies.tolist(), step.late_copies.tolist()) == (0, [0], [0])
    assert (step.experts_s, step.ceiling_s, step.waits_Y.tolist()) == (20.0, 12.0, [8.0])
    assert missed(step) == [(0, 1)]  # expert 0 alone makes up the 8 slots too many of rank 0


def test_fssdp_copies_from_the_second_step_and_errs_when_loads_turn():
    policy = Fssdp(FssdpConfig(reshard_every=0, calibrate=False), COSTS, TOPOLOGY)
    first, second, third = replayed(policy, HOT, HOT, OTHER)
    # nothing to plan from: an even spread is 6 of 24 each, and 20 0 2 2 came
    assert first.held == OWNERS and first.computed_YW.tolist() == [[20, 4]]
    assert first.error_Y.tolist() == pytest.approx([(14 + 6 + 4 + 4) / 24 / 2])
    # told of its own loads, the plan copies expert 0 to rank 1: 12 each
    assert first.informed_YW.tolist() == [[12, 12]] and missed(first) == [(0, 1)]
    assert second.planned[0].holders == ((0, 1), (0,), (1,), (1,))
    assert second.computed_YW.tolist() == [[12, 12]] and second.error_Y.tolist() == [0.0]
    assert second.planned_copies.tolist() == [1] and missed(second) == [(0, 0)]
    assert (second.experts_s, second.ceiling_s, second.waits_Y.tolist()) == (12 + 4, 12, [0.0])
    # expert 2 of rank 1 is hot now, and the plan still copies expert 0, whose 2 slots rank 0 keeps
    assert third.planned == second.planned
    assert third.owned_YW.tolist() == third.computed_YW.tolist() == [[4, 20]]
    assert third.informed_YW.tolist() == [[12, 12]]
    assert missed(third) == [(1, 1)]
    # shares 20 0 2 2 against 2 2 20 0
    assert third.error_Y.tolist() == pytest.approx([(18 + 2 + 18 + 2) / 24 / 2])


def test_copies_after_the_gate_are_late_and_exposed():
    costs = replace(COSTS, hidden_gather_s=99.0, hidden_reduce_s=99.0)
    policy = Shadowing(ShadowingConfig(), costs, TOPOLOGY)
    (step,) = replayed(policy, HOT, costs=costs)
    assert step.planned == OWNERS
    assert step.held[0].holders == ((0, 1), (0,), (1,), (1,))
    assert step.computed_YW.tolist() == [[12, 12]]
    assert step.late_copies.tolist() == [1] and missed(step) == [(0, 1)]
    assert step.experts_s == 12 + 4


def test_copies_last_from_one_micro_batch_to_the_next():
    """Late copies of the first micro-batch serve the second, which asks for others."""
    policy = Scripted((), "even", ({0: (1,)},))
    step = RoutedStep(7, ((HOT,), (HOT,)))
    (done,) = replay(policy, [step], OWNERS, COSTS, TOPOLOGY)
    assert done.step == 7
    assert done.computed_YW.tolist() == [[20, 28]]  # of each 24: 10 | 10 + 4
    assert done.owned_YW.tolist() == [[40, 8]]


def test_owners_move_after_the_step_and_their_moves_count():
    first, second = replayed(Restless(), HOT, HOT)
    assert first.owners == OWNERS and first.moves == 4
    assert second.owners[0].owners == (1, 1, 0, 0)
    # even experts are copied to the next rank in step 0: 0 to rank 1, 2 to rank 0
    assert first.planned[0].holders == ((0, 1), (0,), (0, 1), (1,))
    assert first.computed_YW.tolist() == [[12, 12]]
    # 12 slots, a copy of 4 s, two experts into each rank of 3 x 300 bytes at 100 a second
    assert first.experts_s == pytest.approx(12 + 4 + 2 * 9)


def test_a_window_stands_for_the_steps_before():
    policy = Fssdp(FssdpConfig(reshard_every=0, calibrate=False), COSTS, TOPOLOGY)
    (step,) = replayed(policy, HOT, window=HOT.sum(0)[None, None])
    assert step.computed_YW.tolist() == [[12, 12]] and step.error_Y.tolist() == [0.0]


def test_layers_of_unequal_size_keep_to_their_experts():
    owners = (Placement.even(4, 2), Placement.even(2, 2))
    small = counts([3, 1], [2, 0])
    steps = [RoutedStep(0, ((HOT, small),))]
    (step,) = replay(ExpertParallel(), steps, owners, COSTS, TOPOLOGY)
    assert step.computed_YW.tolist() == [[20, 4], [5, 1]]
    assert step.error_Y.tolist()[1] == pytest.approx((2 / 6 + 2 / 6) / 2)


def test_what_attention_hides_is_taken_off_planned_copies_alone():
    early = (Placement(((0, 1), (0, 1), (1,), (1,)), 2),)
    late = (Placement(((0, 1), (0, 1), (0, 1), (1,)), 2),)
    # two copies from rank 0 to rank 1: 2 s there and 6 s back; a third one after the gate, 4 s
    for hidden_s, exposed_s in ((0.0, 8.0), (1.5, 8 - 2 * 1.5), (9.0, 0.0)):
        costs = replace(COSTS, hidden_gather_s=hidden_s, hidden_reduce_s=hidden_s)
        if hidden_s == 9.0:
            assert transfers_s(OWNERS, early, early, costs, TOPOLOGY).tolist() == [0.0]
        assert transfers_s(OWNERS, early, late, costs, TOPOLOGY).tolist() == [exposed_s + 4]
    twice = replace(COSTS, gathers=2)
    assert transfers_s(OWNERS, early, early, twice, TOPOLOGY).tolist() == [2 * 2 + 6]


def test_errors_are_shares_of_slots():
    predicted = np.array([[2.0, 2.0], [0.0, 0.0], [5.0, 0.0]])
    true = counts([4, 0], [0, 0], [0, 9])
    assert prediction_error(predicted, true, [2, 2, 2]).tolist() == [0.5, 0.0, 1.0]


def test_counts_are_dealt_to_other_numbers_of_ranks():
    assert deal_out(HOT, 2) is HOT
    dealt = deal_out(counts([5, 2, 0], [2, 0, 1]), 3)
    assert dealt.sum(0).tolist() == [7, 2, 1]
    assert dealt.tolist() == [[3, 0, 0], [2, 1, 0], [2, 1, 1]]
    assert total_counts(((HOT,), (OTHER,)), 5).tolist() == [[22, 2, 22, 2, 0]]
