"""A plan that was made ahead counts only for what it was made for."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from collectives.placement import Placement
from hecate.fssdp.plan_ahead import PlanAhead
from hecate.planner.costs import StepCosts
from hecate.planner.load import Counts, LoadWindow
from hecate.planner.policies.protocol import Policy, Reckoning

OWNERS, OTHERS = (Placement.even(2, 2),), (Placement.from_owners([1, 0], 2),)
PLANNED = (Placement(((0, 1), (1,)), 2),)


class Noting(Reckoning, Policy):
    """Plans the same for all, and notes in which thread it did for what."""

    name = "noting"

    def __init__(self, *, plans_ahead: bool) -> None:
        self.plans_ahead = plans_ahead
        self.costs = StepCosts(slot_s=1.0, gather_bytes=1, reduce_bytes=1)
        self.asked: list[tuple[int, int, bool]] = []
        self.may_plan = threading.Event()
        self.may_plan.set()

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        self.may_plan.wait()
        if step < 0:
            raise ValueError("no such step")
        here = threading.current_thread() is threading.main_thread()
        self.asked.append((step, owners[0].owners[0], here))
        return PLANNED

    def route(self, counts_WE: Counts, placement: Placement) -> Counts:
        raise NotImplementedError


@pytest.fixture
def loads() -> LoadWindow:
    window = LoadWindow(1, 2)
    window.push(np.array([[3, 1]]))
    return window


def test_the_thread_plans_while_the_caller_goes_on(loads: LoadWindow) -> None:
    policy = Noting(plans_ahead=True)
    plans = PlanAhead(policy)
    policy.may_plan.clear()
    plans.start(7, loads, OWNERS)  # returns although no plan can be made yet
    policy.may_plan.set()
    assert plans.plan(7, loads, OWNERS) is PLANNED
    assert policy.asked == [(7, 0, False)]
    plans.plan(7, loads, OWNERS)  # nothing is kept for a second time
    assert policy.asked[1:] == [(7, 0, True)]


def test_what_changed_meanwhile_is_planned_anew(loads: LoadWindow) -> None:
    policy = Noting(plans_ahead=True)
    plans = PlanAhead(policy)
    plans.start(1, loads, OWNERS)
    plans.plan(2, loads, OWNERS)
    plans.start(3, loads, OWNERS)
    plans.plan(3, loads, OTHERS)
    plans.start(4, loads, OWNERS)
    policy.adjust_costs(lambda costs: replace(costs, slots_per_rank=1))
    plans.plan(4, loads, OWNERS)
    anew = [(step, owner) for step, owner, here in policy.asked if here]
    assert anew == [(2, 0), (3, 1), (4, 0)]
    assert [step for step, _, here in policy.asked if not here] == [1, 3, 4]


def test_loads_that_were_taken_up_meanwhile_are_planned_for(loads: LoadWindow) -> None:
    policy = Noting(plans_ahead=True)
    plans = PlanAhead(policy)
    plans.start(1, loads, OWNERS)
    loads.restore(np.array([[[1, 3]]]))  # as many steps as before, and other loads
    plans.plan(1, loads, OWNERS)
    assert policy.asked == [(1, 0, False), (1, 0, True)]


def test_a_policy_that_remembers_is_asked_once_and_in_time(loads: LoadWindow) -> None:
    policy = Noting(plans_ahead=False)
    plans = PlanAhead(policy)
    plans.start(1, loads, OWNERS)
    assert policy.asked == []
    plans.plan(1, loads, OWNERS)
    assert policy.asked == [(1, 0, True)]


def test_what_goes_wrong_ahead_is_raised_where_the_plan_is_wanted(loads: LoadWindow) -> None:
    plans = PlanAhead(Noting(plans_ahead=True))
    plans.start(-1, loads, OWNERS)
    with pytest.raises(ValueError, match="no such step"):
        plans.plan(-1, loads, OWNERS)
