"""The plan of a token exchange: two ranks by hand, and any number of them simulated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hecate.fssdp.dispatch import DispatchPlan, count_tokens, plan_dispatch

# Rank 0 owns expert 1, rank 1 owns experts 0 and 2; three tokens on rank 0, two on rank 1.
HELD = ((1,), (0, 2))
CHOICES = (
    torch.tensor([[0, 1], [2, 0], [1, 2]]),
    torch.tensor([[2, 1], [2, 0]]),
)
COUNTS_WE = np.array([[2, 2, 2], [1, 1, 2]])


def to_owners(counts_WE: np.ndarray, held: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Quotas of a partition: every slot goes to the one rank that holds its expert."""
    quotas_WEW = np.zeros((*counts_WE.shape, len(held)), dtype=np.int64)
    for rank, experts in enumerate(held):
        for expert in experts:
            quotas_WEW[:, expert, rank] = counts_WE[:, expert]
    return quotas_WEW


def test_counts_by_hand():
    for choices_TK, counts_E in zip(CHOICES, COUNTS_WE, strict=True):
        assert count_tokens(choices_TK, 3).tolist() == counts_E.tolist()


def test_experts_that_nobody_chose_count_zero():
    assert count_tokens(torch.tensor([[1, 3], [3, 1]]), 6).tolist() == [0, 2, 0, 2, 0, 0]
    nobody = count_tokens(torch.empty(0, 2, dtype=torch.int64), 4)
    assert nobody.tolist() == [0] * 4
    assert nobody.dtype == torch.int64


def test_the_plan_of_a_rank_that_owns_one_expert():
    plan = plan_dispatch(CHOICES[0], to_owners(COUNTS_WE, HELD), HELD, 0)
    # slots 0..5 go to experts 0 1 2 0 1 2: first expert 1 (rank 0), then experts 0 and 2 (rank 1)
    assert plan.slot_order_S.tolist() == [1, 4, 0, 3, 2, 5]
    assert plan.row_of_slot_TK.tolist() == [[2, 0], [4, 3], [1, 5]]
    assert plan.send_rows == (2, 4)
    assert plan.receive_rows == (2, 1)
    assert plan.rows_per_expert == (3,)
    assert plan.arrange_R is None


def test_the_plan_of_a_rank_that_owns_two_experts():
    plan = plan_dispatch(CHOICES[1], to_owners(COUNTS_WE, HELD), HELD, 1)
    assert plan.slot_order_S.tolist() == [1, 3, 0, 2]
    assert plan.row_of_slot_TK.tolist() == [[2, 0], [3, 1]]
    assert plan.send_rows == (1, 3)
    assert plan.receive_rows == (4, 3)
    assert plan.rows_per_expert == (3, 4)
    # received: from rank 0 experts 0 0 2 2, from rank 1 experts 0 2 2
    assert plan.arrange_R is not None
    assert plan.arrange_R.tolist() == [0, 1, 4, 2, 3, 5, 6]


def test_one_rank_has_its_rows_by_expert_already():
    plan = plan_dispatch(CHOICES[0], to_owners(COUNTS_WE[:1], ((0, 1, 2),)), ((0, 1, 2),), 0)
    assert plan.slot_order_S.tolist() == [0, 3, 1, 4, 2, 5]
    assert plan.send_rows == plan.receive_rows == (6,)
    assert plan.rows_per_expert == (2, 2, 2)
    assert plan.arrange_R is None
    assert not plan.crosses


def test_a_replica_takes_its_quota_and_lies_after_the_own_experts():
    """Rank 0 holds a copy of expert 2, and computes one of rank 1's slots for it."""
    held = ((1, 2), (0, 2))
    quotas_WEW = to_owners(COUNTS_WE, HELD)
    quotas_WEW[0, 2], quotas_WEW[1, 2] = (2, 0), (1, 1)
    here, there = (plan_dispatch(CHOICES[rank], quotas_WEW, held, rank) for rank in (0, 1))
    # rank 0 keeps its slots for experts 1 (1, 4) and 2 (2, 5), and sends those for 0 (0, 3)
    assert here.slot_order_S.tolist() == [1, 4, 2, 5, 0, 3]
    assert (here.send_rows, here.receive_rows) == ((4, 2), (4, 2))
    assert here.rows_per_expert == (3, 3)
    # received: from itself 1 1 2 2, from rank 1 experts 1 2
    assert here.arrange_R is not None
    assert here.arrange_R.tolist() == [0, 1, 4, 2, 3, 5]
    # rank 1 sends slot 1 (expert 1) and the first of its two for expert 2, and keeps 3 and 2
    assert there.slot_order_S.tolist() == [1, 0, 3, 2]
    assert (there.send_rows, there.receive_rows) == ((2, 2), (2, 2))
    assert there.rows_per_expert == (3, 1)
    assert here.crosses and there.crosses


def test_nothing_crosses_where_every_rank_computes_its_own():
    held = ((0, 1, 2), (0, 2, 1))
    quotas_WEW = np.zeros((2, 3, 2), dtype=np.int64)
    quotas_WEW[0, :, 0], quotas_WEW[1, :, 1] = COUNTS_WE
    plan = plan_dispatch(CHOICES[1], quotas_WEW, held, 1)
    assert not plan.crosses
    assert plan.slot_order_S.tolist() == [3, 0, 2, 1]  # experts 0, 2, 1
    assert plan.rows_per_expert == (1, 2, 1)
    assert plan.arrange_R is None


def test_a_rank_that_owns_nothing_sends_and_receives_nothing():
    held = ((0, 1), (), (2,))
    quotas_WEW = to_owners(np.array([[2, 2, 2], [1, 1, 2], [0, 0, 0]]), held)
    plan = plan_dispatch(CHOICES[1], quotas_WEW, held, 1)
    assert plan.send_rows == (2, 0, 2)
    assert plan.receive_rows == (0, 0, 0)
    assert plan.rows_per_expert == ()
    idle = plan_dispatch(torch.empty(0, 2, dtype=torch.int64), quotas_WEW, held, 2)
    assert idle.slot_order_S.shape == (0,)
    assert idle.row_of_slot_TK.shape == (0, 2)
    assert idle.send_rows == (0, 0, 0)
    assert idle.receive_rows == (2, 2, 0)


@dataclass(frozen=True)
class Routing:
    """What every rank chose, who holds what, and who computes what."""

    choices: list[torch.Tensor]
    held: tuple[tuple[int, ...], ...]
    quotas_WEW: np.ndarray

    def plans(self) -> list[DispatchPlan]:
        return [
            plan_dispatch(own, self.quotas_WEW, self.held, rank)
            for rank, own in enumerate(self.choices)
        ]


@st.composite
def routings(draw: st.DrawFn) -> Routing:
    """Any number of holders for each expert, in any order on a rank, and any split among them."""
    world_size = draw(st.integers(1, 5))
    num_experts = draw(st.integers(1, 9))
    ranks = st.sets(st.integers(0, world_size - 1), min_size=1)
    holders = draw(st.lists(ranks, min_size=num_experts, max_size=num_experts))
    held = tuple(
        tuple(draw(st.permutations([e for e in range(num_experts) if rank in holders[e]])))
        for rank in range(world_size)
    )
    top_k = draw(st.integers(1, min(3, num_experts)))
    token = st.permutations(range(num_experts)).map(lambda order: order[:top_k])
    choices = [
        torch.tensor(draw(st.lists(token, max_size=6)), dtype=torch.int64).view(-1, top_k)
        for _ in range(world_size)
    ]
    quotas_WEW = np.zeros((world_size, num_experts, world_size), dtype=np.int64)
    for source, own in enumerate(choices):
        for expert in own.flatten().tolist():
            target = draw(st.sampled_from(sorted(holders[expert])))
            quotas_WEW[source, expert, target] += 1
    return Routing(choices, held, quotas_WEW)


@given(routings())
def test_slots_lie_by_destination_then_as_it_holds_its_experts(routing):
    for rank, (own, plan) in enumerate(zip(routing.choices, routing.plans(), strict=True)):
        slots = own.flatten().tolist()
        of_expert = {e: [s for s, chosen in enumerate(slots) if chosen == e] for e in set(slots)}
        expected = []
        for target, experts in enumerate(routing.held):
            for expert in experts:
                quota = routing.quotas_WEW[rank, expert, target]
                taken = of_expert.get(expert, [])[:quota]
                expected += taken
                if expert in of_expert:
                    of_expert[expert] = of_expert[expert][quota:]
        assert plan.slot_order_S.tolist() == expected
        inverse = plan.row_of_slot_TK.flatten()
        assert plan.slot_order_S[inverse].tolist() == list(range(len(slots)))
        assert plan.row_of_slot_TK.shape == own.shape


@given(routings())
def test_every_slot_meets_its_expert_and_comes_back(routing):
    """All ranks in one process; a row is (expert, source rank, slot)."""
    plans, choices = routing.plans(), routing.choices
    ranks = range(len(choices))
    sent, outgoing = [], []
    for rank, (own, plan) in enumerate(zip(choices, plans, strict=True)):
        slots = own.flatten().tolist()
        rows = [(slots[slot], rank, slot) for slot in plan.slot_order_S.tolist()]
        assert sum(plan.send_rows) == len(rows)
        sent.append(rows)
        outgoing.append(split(rows, plan.send_rows))
    crosses = any(
        rows for rank in ranks for target, rows in enumerate(outgoing[rank]) if target != rank
    )
    returned = [[[] for _ in ranks] for _ in ranks]
    for rank, plan in enumerate(plans):
        assert plan.crosses == crosses
        assert plan.receive_rows == tuple(plans[source].send_rows[rank] for source in ranks)
        received = [row for source in ranks for row in outgoing[source][rank]]
        order = range(len(received)) if plan.arrange_R is None else plan.arrange_R.tolist()
        assert sorted(order) == list(range(len(received)))
        arranged = [received[place] for place in order]
        held = list(routing.held[rank])
        assert [row[0] for row in arranged] == [
            e for e, count in zip(held, plan.rows_per_expert, strict=True) for _ in range(count)
        ]
        undone = [None] * len(received)
        for place, row in zip(order, arranged, strict=True):
            undone[place] = row
        for source, rows in enumerate(split(undone, plan.receive_rows)):
            returned[source][rank] = rows
    for rank, plan in enumerate(plans):
        back = [row for target in ranks for row in returned[rank][target]]
        assert back == sent[rank]
        for slot, place in enumerate(plan.row_of_slot_TK.flatten().tolist()):
            assert back[place][1:] == (rank, slot)


def split(rows: list, sizes: tuple[int, ...]) -> list[list]:
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [rows[a:b] for a, b in zip(ends, ends[1:], strict=False)]
