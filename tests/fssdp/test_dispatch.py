"""The plan of a token exchange: two ranks by hand, and any number of them simulated."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from collectives.placement import Placement
from hecate.fssdp.dispatch import DispatchPlan, count_tokens, plan_dispatch

# Rank 0 owns expert 1, rank 1 owns experts 0 and 2; three tokens on rank 0, two on rank 1.
PLACEMENT = Placement.from_owners([1, 0, 1], 2)
CHOICES = (
    torch.tensor([[0, 1], [2, 0], [1, 2]]),
    torch.tensor([[2, 1], [2, 0]]),
)
COUNTS_WE = torch.tensor([[2, 2, 2], [1, 1, 2]])


def test_counts_by_hand():
    for choices_TK, counts_E in zip(CHOICES, COUNTS_WE, strict=True):
        assert torch.equal(count_tokens(choices_TK, 3), counts_E)


def test_experts_that_nobody_chose_count_zero():
    assert count_tokens(torch.tensor([[1, 3], [3, 1]]), 6).tolist() == [0, 2, 0, 2, 0, 0]
    nobody = count_tokens(torch.empty(0, 2, dtype=torch.int64), 4)
    assert nobody.tolist() == [0] * 4
    assert nobody.dtype == torch.int64


def test_the_plan_of_a_rank_that_owns_one_expert():
    plan = plan_dispatch(CHOICES[0], COUNTS_WE, PLACEMENT, 0)
    # slots 0..5 go to experts 0 1 2 0 1 2: first expert 1 (rank 0), then experts 0 and 2 (rank 1)
    assert plan.slot_order_S.tolist() == [1, 4, 0, 3, 2, 5]
    assert plan.row_of_slot_TK.tolist() == [[2, 0], [4, 3], [1, 5]]
    assert plan.send_rows == (2, 4)
    assert plan.receive_rows == (2, 1)
    assert plan.rows_per_expert == (3,)
    assert plan.arrange_R is None


def test_the_plan_of_a_rank_that_owns_two_experts():
    plan = plan_dispatch(CHOICES[1], COUNTS_WE, PLACEMENT, 1)
    assert plan.slot_order_S.tolist() == [1, 3, 0, 2]
    assert plan.row_of_slot_TK.tolist() == [[2, 0], [3, 1]]
    assert plan.send_rows == (1, 3)
    assert plan.receive_rows == (4, 3)
    assert plan.rows_per_expert == (3, 4)
    # received: from rank 0 experts 0 0 2 2, from rank 1 experts 0 2 2
    assert plan.arrange_R is not None
    assert plan.arrange_R.tolist() == [0, 1, 4, 2, 3, 5, 6]


def test_one_rank_has_its_rows_by_expert_already():
    plan = plan_dispatch(CHOICES[0], COUNTS_WE[:1], Placement.even(3, 1), 0)
    assert plan.slot_order_S.tolist() == [0, 3, 1, 4, 2, 5]
    assert plan.send_rows == plan.receive_rows == (6,)
    assert plan.rows_per_expert == (2, 2, 2)
    assert plan.arrange_R is None


def test_a_rank_that_owns_nothing_sends_and_receives_nothing():
    placement = Placement.from_owners([0, 0, 2], 3)
    counts_WE = torch.tensor([[2, 2, 2], [1, 1, 2], [0, 0, 0]])
    plan = plan_dispatch(CHOICES[1], counts_WE, placement, 1)
    assert plan.send_rows == (2, 0, 2)
    assert plan.receive_rows == (0, 0, 0)
    assert plan.rows_per_expert == ()
    idle = plan_dispatch(torch.empty(0, 2, dtype=torch.int64), counts_WE, placement, 2)
    assert idle.slot_order_S.shape == (0,)
    assert idle.row_of_slot_TK.shape == (0, 2)
    assert idle.send_rows == (0, 0, 0)
    assert idle.receive_rows == (2, 2, 0)


@st.composite
def routings(draw: st.DrawFn) -> tuple[Placement, list[torch.Tensor]]:
    world_size = draw(st.integers(1, 5))
    num_experts = draw(st.integers(1, 9))
    owners = draw(
        st.lists(st.integers(0, world_size - 1), min_size=num_experts, max_size=num_experts)
    )
    top_k = draw(st.integers(1, min(3, num_experts)))
    token = st.permutations(range(num_experts)).map(lambda order: order[:top_k])
    choices = [
        torch.tensor(draw(st.lists(token, max_size=6)), dtype=torch.int64).view(-1, top_k)
        for _ in range(world_size)
    ]
    return Placement.from_owners(owners, world_size), choices


def plans_of(placement: Placement, choices: list[torch.Tensor]) -> list[DispatchPlan]:
    counts_WE = torch.stack([count_tokens(own, placement.num_chunks) for own in choices])
    return [plan_dispatch(own, counts_WE, placement, rank) for rank, own in enumerate(choices)]


@given(routings())
def test_slots_lie_by_owner_then_expert_then_token(routing):
    placement, choices = routing
    for own, plan in zip(choices, plans_of(placement, choices), strict=True):
        slots = own.flatten().tolist()
        expected = sorted(
            range(len(slots)), key=lambda s: (placement.owners[slots[s]], slots[s], s)
        )
        assert plan.slot_order_S.tolist() == expected
        inverse = plan.row_of_slot_TK.flatten()
        assert plan.slot_order_S[inverse].tolist() == list(range(len(slots)))
        assert plan.row_of_slot_TK.shape == own.shape


@given(routings())
def test_every_slot_meets_its_expert_and_comes_back(routing):
    """All ranks in one process; a row is (expert, source rank, slot)."""
    placement, choices = routing
    plans = plans_of(placement, choices)
    ranks = range(placement.world_size)
    sent, outgoing = [], []
    for rank, (own, plan) in enumerate(zip(choices, plans, strict=True)):
        slots = own.flatten().tolist()
        rows = [(slots[slot], rank, slot) for slot in plan.slot_order_S.tolist()]
        assert sum(plan.send_rows) == len(rows)
        sent.append(rows)
        outgoing.append(split(rows, plan.send_rows))
    returned = [[[] for _ in ranks] for _ in ranks]
    for rank, plan in enumerate(plans):
        assert plan.receive_rows == tuple(plans[source].send_rows[rank] for source in ranks)
        received = [row for source in ranks for row in outgoing[source][rank]]
        order = range(len(received)) if plan.arrange_R is None else plan.arrange_R.tolist()
        assert sorted(order) == list(range(len(received)))
        arranged = [received[place] for place in order]
        assert arranged == sorted(arranged)
        own_experts = placement.chunks_on(rank)
        assert plan.rows_per_expert == tuple(
            sum(row[0] == expert for row in arranged) for expert in own_experts
        )
        assert {row[0] for row in arranged} <= set(own_experts)
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
