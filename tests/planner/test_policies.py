"""Every policy keeps the promises of the protocol; what each is known for, by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from collectives.placement import Placement
from collectives.topology import Link, Topology
from hecate.planner.costs import StepCosts
from hecate.planner.load import LoadWindow
from hecate.planner.policies import (
    POLICIES,
    ExpertParallel,
    Fsdp,
    FsdpConfig,
    Fssdp,
    FssdpConfig,
    Replication,
    ReplicationConfig,
    Shadowing,
    ShadowingConfig,
    Swapping,
    SwappingConfig,
    even_choices,
)

# a slot takes a second, a copy four
COSTS = StepCosts(slot_s=1.0, gather_bytes=2, reduce_bytes=2, slots_per_rank=2)


def nodes(count):
    return Topology.single_node(count, Link(1.0, 0.0))


TWO = nodes(2)
CONFIGS = {
    "fsdp": FsdpConfig,
    "fssdp": FssdpConfig,
    "replication": ReplicationConfig,
    "shadowing": ShadowingConfig,
    "swapping": SwappingConfig,
}


def build(name, ranks):
    config = CONFIGS[name]() if name in CONFIGS else None
    return POLICIES[name](config, COSTS, nodes(ranks))


def window(*steps):
    loads = LoadWindow(len(steps[0]), len(steps[0][0]))
    for counts_YE in steps:
        loads.push(np.array(counts_YE, dtype=np.int64))
    return loads


def busiest(policy, counts_WE, placement):
    return int(policy.route(np.array(counts_WE), placement).sum((0, 1)).max())


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_policy_keeps_owners_among_the_holders_and_loses_no_slot(name, ranks):
    rng = np.random.default_rng(ranks)
    counts_YWE = rng.integers(0, 60, (2, ranks, 6))
    counts_YWE[:, :, 0] += 200
    policy, twin = build(name, ranks), build(name, ranks)
    assert policy.name == name
    owners = (Placement.even(6, ranks),) * 2
    loads = LoadWindow(2, 6)
    for step in range(26):
        plans = policy.plan(step, loads, owners)
        assert plans == twin.plan(step, loads, owners)
        for layer, (plan, own) in enumerate(zip(plans, owners, strict=True)):
            held = policy.after_gate(layer, counts_YWE[layer], plan)
            assert held == twin.after_gate(layer, counts_YWE[layer], plan)
            assert own.is_partition and plan.contains(own) and held.contains(plan)
            quotas_WEW = policy.route(counts_YWE[layer], held)
            assert (quotas_WEW.sum(2) == counts_YWE[layer]).all()
        loads.push(counts_YWE.sum(1))
        moved = policy.new_owners(step, loads, owners)
        assert moved == twin.new_owners(step, loads, owners)
        for old, new in zip(owners, moved, strict=True):
            assert sorted(old.owners) == sorted(new.owners)
        owners = moved


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"fsdp"}))
def test_nothing_is_copied_or_moved_without_history_or_need(name):
    owners = (Placement.even(4, 2),)
    policy = build(name, 2)
    assert policy.plan(0, LoadWindow(1, 4), owners) is owners
    balanced = window([[5, 5, 5, 5]])
    assert policy.plan(1, balanced, owners)[0].is_partition
    assert policy.new_owners(24, balanced, owners) is owners
    counts_WE = np.full((2, 4), 3)
    assert policy.after_gate(0, counts_WE, owners[0]) is owners[0]


def test_only_the_ceiling_is_inexact():
    assert [name for name, policy in POLICIES.items() if not policy.exact] == ["force_balanced"]


def test_expert_parallel_needs_nothing():
    assert busiest(ExpertParallel(), [[9, 1], [9, 1]], Placement.even(2, 2)) == 18


def test_shadowing_copies_a_hot_expert_once_that_pays():
    owners = Placement.even(2, 2)
    # 20 on rank 0 and 2 on rank 1: shared they are 11 each, and the broadcast costs 4
    policy = Shadowing(ShadowingConfig(), COSTS, TWO)
    held = policy.after_gate(0, np.array([[10, 1], [10, 1]]), owners)
    assert held.holders == ((0, 1), (1,))
    assert busiest(policy, [[10, 1], [10, 1]], held) == 11
    # 6 on rank 0 and 2 on rank 1: 4 each, which saves 2 for 4
    assert policy.after_gate(0, np.array([[3, 1], [3, 1]]), owners) is owners
    # dealt by FasterMoE's own rule a shadow leaves rank 0 with its own 20
    policy = Shadowing(ShadowingConfig(dispatch="even"), COSTS, TWO)
    assert policy.after_gate(0, np.array([[20, 1], [0, 1]]), owners) is owners


def test_shadowing_keeps_to_the_memory_there_is():
    policy = Shadowing(ShadowingConfig(), COSTS, TWO)
    counts_WE = np.array([[50, 50, 50, 50, 0], [50, 50, 50, 50, 0]])
    held = policy.after_gate(0, counts_WE, Placement.from_owners([0, 0, 0, 0, 1], 2))
    assert sum(len(ranks) - 1 for ranks in held.holders) == 2


def test_swapping_evens_out_at_its_interval_alone():
    owners = (Placement.even(4, 2),)
    loads = window([[100, 80, 10, 10]])  # 180 | 20; best is 110 | 90
    policy = Swapping(SwappingConfig(every=10), COSTS, TWO)
    assert policy.new_owners(8, loads, owners) is owners
    moved = policy.new_owners(9, loads, owners)
    assert busiest(policy, [[100, 80, 10, 10], [0, 0, 0, 0]], moved[0]) == 110
    assert policy.new_owners(19, loads, moved) is moved
    # two moves of 1000 copies of 4 s cost more than 10 steps of 70 slots of 1 s
    dear = Swapping(SwappingConfig(every=10, copies_per_move=1000), COSTS, TWO)
    assert dear.new_owners(9, loads, owners) is owners


def test_replicas_last_until_the_load_calls_for_others():
    owners = (Placement.even(4, 2),)
    policy = Replication(ReplicationConfig(), COSTS, TWO)
    held = policy.plan(1, window([[100, 0, 10, 10]]), owners)
    assert held[0].holders == ((0, 1), (0,), (1,), (1,))
    # not needed, but not in the way either
    assert policy.plan(2, window([[10, 10, 10, 10]]), owners) == held
    # rank 1's experts are hot now
    held = policy.plan(3, window([[0, 0, 200, 0]]), owners)
    assert held[0].holders[2] == (0, 1)
    assert busiest(policy, [[0, 0, 100, 0], [0, 0, 100, 0]], held[0]) == 100


def test_replicas_are_the_state_of_replication():
    owners = (Placement.even(4, 2),)
    policy = Replication(ReplicationConfig(), COSTS, TWO)
    assert policy.state() == {"holders": []}
    hot, calm = window([[100, 0, 10, 10]]), window([[10, 10, 10, 10]])
    held = policy.plan(1, hot, owners)
    assert policy.state() == {"holders": [[[0, 1], [0], [1], [1]]]}
    resumed, fresh = (Replication(ReplicationConfig(), COSTS, TWO) for _ in range(2))
    resumed.restore(json.loads(json.dumps(policy.state())))
    assert resumed.plan(2, calm, owners) == policy.plan(2, calm, owners) == held
    assert fresh.plan(2, calm, owners) == owners
    # owners that are none of the holders: replicas begin anew
    assert resumed.plan(3, calm, (Placement.from_owners([1, 1, 0, 0], 2),))[0].is_partition


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_that_takes_up_a_state_goes_on_alike(name):
    rng = np.random.default_rng(5)
    policy, owners, loads = build(name, 3), (Placement.even(6, 3),) * 2, LoadWindow(2, 6)
    resumed = policy
    for step in range(30):
        if step == 13:
            resumed = build(name, 3)
            resumed.restore(json.loads(json.dumps(policy.state())))
        plans = policy.plan(step, loads, owners)
        assert resumed.plan(step, loads, owners) == plans
        counts_YE = rng.integers(0, 90, (2, 6)) ** 2
        for layer, plan in enumerate(plans):
            counts_WE = np.stack([counts_YE[layer]] * 3)
            held = policy.after_gate(layer, counts_WE, plan)
            assert resumed.after_gate(layer, counts_WE, plan) == held
        loads.push(counts_YE)
        owners = policy.new_owners(step, loads, owners)
        assert resumed.new_owners(step, loads, owners) == owners


def test_replicas_keep_to_their_slots():
    owners = (Placement.even(8, 2),)
    policy = Replication(ReplicationConfig(), COSTS, TWO)
    rng = np.random.default_rng(0)
    for step in range(30):
        plan = policy.plan(step, window([rng.integers(0, 300, 8).tolist()]), owners)
        for rank in (0, 1):
            assert len(plan[0].chunks_on(rank)) <= 4 + COSTS.slots_per_rank


def test_fsdp_gathers_everything_and_keeps_every_slot_at_home():
    policy = Fsdp(FsdpConfig(), COSTS, TWO)
    (plan,) = policy.plan(0, LoadWindow(1, 3), (Placement.even(3, 2),))
    assert plan.holders == ((0, 1),) * 3
    quotas_WEW = policy.route(np.array([[4, 0, 2], [1, 9, 0]]), plan)
    assert quotas_WEW[0, :, 1].tolist() == quotas_WEW[1, :, 0].tolist() == [0, 0, 0]


def test_fssdp_deals_by_the_paper_where_it_is_asked_to():
    # layer 0 has an expert of 60 of 90 slots, which takes a rank of its own; layer 1 is even and
    # has one expert less
    owners = (Placement.even(4, 2), Placement.from_owners([0, 0, 1], 2))
    loads = window([[60, 10, 10, 10], [5, 5, 5, 0]])
    config = FssdpConfig(sharding="paper", reshard_every=5)
    policy = Fssdp(config, COSTS, TWO)
    assert policy.new_owners(3, loads, owners) is owners
    moved = policy.new_owners(4, loads, owners)
    assert busiest(policy, [[60, 10, 10, 10], [0, 0, 0, 0]], moved[0]) == 60
    assert sorted(map(len, map(moved[0].chunks_on, (0, 1)))) == [1, 3]
    owned = [sum(len(each.chunks_on(rank)) for each in moved) for rank in (0, 1)]
    assert sorted(owned) == [3, 4]
    # the layer's 70 become 60, which 5 steps of it must earn: 50 slots for 2 moves and more
    dear = Fssdp(config.model_copy(update={"slots_per_move": 50.0}), COSTS, TWO)
    assert dear.new_owners(4, loads, owners) is owners


def test_calibration_is_off_unless_asked_for():
    owners = (Placement.even(2, 2),)
    counts_WE = np.array([[20, 1], [20, 1]])
    for wanted in (False, True):
        policy = Fssdp(FssdpConfig(calibrate=wanted), COSTS, TWO)
        policy.plan(0, LoadWindow(1, 2), owners)
        held = policy.after_gate(0, counts_WE, owners[0])
        assert (held is owners[0]) != wanted
        assert busiest(policy, counts_WE, held) == (21 if wanted else 40)


def test_what_attention_does_not_hide_is_copied_once_the_gate_has_decided():
    owners = (Placement.even(2, 2),)
    for hidden_s, calibrates, ahead in ((0.0, True, 0), (0.0, False, 1), (9.0, True, 1)):
        costs = replace(COSTS, hidden_gather_s=hidden_s)
        policy = Fssdp(FssdpConfig(calibrate=calibrates), costs, TWO)
        (planned,) = policy.plan(1, window([[40, 2]]), owners)
        assert sum(map(len, planned.holders)) - 2 == ahead
        now = policy.after_gate(0, np.array([[20, 1], [20, 1]]), planned)
        assert now.holders == ((0, 1), (1,))


@pytest.mark.parametrize(("tokens", "top_k", "experts"), [(7, 2, 4), (8, 1, 3), (5, 3, 3)])
def test_even_choices_are_distinct_and_even(tokens, top_k, experts):
    choices = [even_choices(tokens, top_k, experts, rank) for rank in (0, 1)]
    for each in choices:
        assert each.shape == (tokens, top_k)
        assert all(len(set(row)) == top_k for row in each.tolist())
    counts = np.bincount(np.concatenate(choices).ravel(), minlength=experts)
    assert counts.max() - counts.min() <= 1
    with pytest.raises(ValueError, match="4 experts for each token; expected at most 3"):
        even_choices(2, 4, 3, 0)
