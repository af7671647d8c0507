"""A training step of one or two layers on two ranks, worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from hecate.simulate.costs import Costs
from hecate.simulate.step import LayerWork, StepPlan, run_step
from hecate.simulate.timeline import Work

COSTS = Costs(
    layer_forward_s=10.0,
    layer_backward_s=20.0,
    slot_forward_s=1.0,
    slot_backward_s=2.0,
    expert_forward_s=0.0,
    expert_backward_s=0.0,
    expert_least_s=0.0,
    ends_s=5.0,
    optimizer_s=3.0,
    expert_optimizer_s=1.0,
    host_s=0.0,
    row_bytes=1,
    gather_bytes=1,
    reduce_bytes=1,
)
NOTHING = Work(0.0)
LAYER = LayerWork(
    slots_W=np.array([6, 2]), busy_W=np.array([1, 1]), exchange=Work(0.0, inside_s=2.0)
)


def plan_of(*layers: LayerWork, **changes: object) -> StepPlan:
    plan = StepPlan(layers, NOTHING, NOTHING, NOTHING, None, owned_experts=2)
    return replace(plan, **changes)  # type: ignore[arg-type]


def test_one_layer_by_hand() -> None:
    # 10 + 2 + 6 + 2, ends 5, then 2 + 12 + 2 + 20, optimizer 3 + 2
    step = run_step(plan_of(LAYER), COSTS, 2)
    assert step.step_s == 10 + 2 + 6 + 2 + 5 + 2 + 12 + 2 + 20 + 5
    # the lighter rank waits 4 and 8 s; half of that is the mean
    assert step.charged_s["straggler"] == 6
    assert step.charged_s["experts"] == 4 + 8
    assert step.charged_s["all_to_all"] == 8
    assert sum(step.charged_s.values()) == step.step_s


def test_copies_that_attention_hides_cost_nothing() -> None:
    copies = Work(1.0, inside_s=3.0)
    plain = run_step(plan_of(LAYER, LAYER), COSTS, 2).step_s
    hidden = replace(LAYER, gather=copies, reduce=copies)
    assert run_step(plan_of(hidden, hidden), COSTS, 2).step_s == plain
    again = plan_of(hidden, hidden, rematerialize=True)
    assert run_step(again, COSTS, 2).step_s == plain


def test_a_gather_longer_than_attention_is_exposed() -> None:
    plain = run_step(plan_of(LAYER, LAYER), COSTS, 2)
    # issued when attention begins, 4 s longer than it and the exchange that shares nothing
    long = replace(LAYER, gather=Work(0.0, across_s=16.0))
    step = run_step(plan_of(long, long), COSTS, 2)
    assert step.step_s == plain.step_s + 2 * 4
    assert step.charged_s["gather"] == 2 * 4


def test_the_last_reduction_is_waited_for() -> None:
    late = replace(LAYER, reduce=Work(0.0, across_s=27.0))
    plain = run_step(plan_of(LAYER), COSTS, 2)
    assert run_step(plan_of(late), COSTS, 2).step_s == plain.step_s + 7


def test_copies_after_the_gate_share_the_links_with_the_exchange() -> None:
    late = replace(LAYER, late=Work(1.0, inside_s=3.0))
    plain = run_step(plan_of(LAYER), COSTS, 2)
    # launched beside the exchange, then behind the 2 + 3 s that both take on one link
    assert run_step(plan_of(late), COSTS, 2).step_s == plain.step_s + 3
    elsewhere = replace(LAYER, late=Work(0.0, across_s=3.0))
    assert run_step(plan_of(elsewhere), COSTS, 2).step_s == plain.step_s + 1


def test_copies_after_the_gate_wait_for_the_planned_ones() -> None:
    planned = replace(LAYER, gather=Work(0.0, across_s=14.0))
    both = replace(planned, late=Work(0.0, across_s=3.0))
    plain = run_step(plan_of(planned), COSTS, 2).step_s
    # attention is over at 10, the planned gather at 14; the exchange then hides 2 of 3 s
    assert plain == run_step(plan_of(LAYER), COSTS, 2).step_s + 2
    assert run_step(plan_of(both), COSTS, 2).step_s == plain + 3


def test_recomputation_runs_attention_exchange_and_experts_again() -> None:
    plain = run_step(plan_of(LAYER), COSTS, 2).step_s
    assert run_step(plan_of(LAYER, recompute=True), COSTS, 2).step_s == plain + 10 + 2 + 6 + 2


def test_rows_take_no_less_than_reading_their_experts() -> None:
    costs = replace(COSTS, expert_least_s=9.0)
    assert run_step(plan_of(LAYER), costs, 2).charged_s["experts"] == 9 + 18


def test_moves_between_steps_are_exposed() -> None:
    plain = run_step(plan_of(LAYER), COSTS, 2).step_s
    assert run_step(plan_of(LAYER, between=Work(2.0)), COSTS, 2).step_s == plain + 2


def test_costs_are_finite() -> None:
    with pytest.raises(ValueError, match="ends_s"):
        replace(COSTS, ends_s=float("nan"))
