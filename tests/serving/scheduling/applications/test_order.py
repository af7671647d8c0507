"""Who goes next: policies, ageing, places that are taken away, and tenants that get their part."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.scheduling.applications.live import Ask, ClassKey, Live
from serving.scheduling.applications.order import LEAST_S, Order, Place
from serving.scheduling.applications.policies import POLICIES, Oracle
from serving.scheduling.applications.policies.config import OrderConfig
from serving.scheduling.applications.prospects import Prospect

STEADY = OrderConfig(ageing_s=0, margin=0)


def _live(name: str = "a", tenant: str = "", arrived_s: float = 0.0, **more: float) -> Live:
    return Live(ClassKey(tenant, name), name, arrived_s, **more)


def _ask(number: int, arrived_s: float = 0.0) -> Ask:
    return Ask(str(number), number, arrived_s, 10, 10)


class _Known:
    """Means of classes, by name."""

    def __init__(self, **samples: list[float]) -> None:
        self._samples = samples

    def prospect(self, live: Live) -> Prospect:
        samples = np.array(self._samples.get(live.key.name, []))
        return Prospect(0.0, samples, samples)


def _first(policy: str, lives: list[Live], prospects: _Known | None = None) -> str:
    order = Order(POLICIES[policy](prospects or _Known()), STEADY)
    order.tick(lives, 10.0)
    places = {
        order.place(live, _ask(number, float(number)), 10.0): live.key.name
        for number, live in enumerate(lives)
    }
    return places[min(places)]


def test_each_policy_has_its_own_idea_of_who_is_first() -> None:
    lives = [
        _live("late", arrived_s=5.0, deadline_s=90.0, attained_s=3.0),
        _live("early", arrived_s=1.0, deadline_s=80.0, attained_s=9.0),
        _live("young", arrived_s=7.0, attained_s=1.0),
    ]
    assert _first("request_fcfs", lives) == "late"  # its request was the first, not itself
    assert _first("application_fcfs", lives) == "early"
    assert _first("edf", lives) == "early"
    assert _first("las", lives) == "young"
    means = _Known(late=[1.0, 9.0], early=[4.0, 4.0], young=[20.0])
    assert _first("sjf", lives, means) == "early"
    truth = {"late": 2.0, "early": 7.0, "young": 8.0}
    order = Order(Oracle(lambda live: truth[live.key.name]), STEADY)
    assert min(lives, key=lambda live: order.place(live, _ask(0), 0.0)).key.name == "late"


def test_the_virtual_token_counter_gives_no_credit_for_idleness() -> None:
    policy = POLICIES["vtc"](_Known())
    busy, idle = _live("busy"), _live("idle")
    policy.tick([busy], 0.0)
    policy.served(busy, 100, 50)
    policy.tick([busy, idle], 1.0)
    assert policy.rank(idle, _ask(1), 1.0) == policy.rank(busy, _ask(0), 1.0) == 60.0
    policy.served(busy, 0, 1)
    assert policy.rank(idle, _ask(1), 1.0) < policy.rank(busy, _ask(0), 1.0)
    policy.tick([idle], 2.0)  # busy left with a debt, and finds it again
    policy.tick([idle, busy], 3.0)
    assert policy.rank(busy, _ask(2), 3.0) == 61.0


def test_places_are_taken_by_much_smaller_demands_alone_and_never_where_ranks_are_times() -> None:
    order = Order(POLICIES["las"](_Known()), OrderConfig(ageing_s=0, margin=0.25))
    assert order.preempts
    assert order.gives_way(Place(False, 10.0, 1), Place(False, 7.9, 2))
    assert not order.gives_way(Place(False, 10.0, 1), Place(False, 8.1, 2))
    assert order.gives_way(Place(True, 1.0, 1), Place(False, 99.0, 2))
    assert not order.gives_way(Place(False, 99.0, 1), Place(True, 1.0, 2))
    assert not Order(POLICIES["request_fcfs"](_Known()), OrderConfig()).preempts


def test_a_deadline_counts_while_it_can_be_met() -> None:
    known = _Known(any=[10.0] * 9 + [11.0])
    policy = POLICIES["least_slack"](known)
    near, far, never, lost = (
        _live("any", deadline_s=deadline_s) for deadline_s in (12.0, 90.0, math.inf, 5.0)
    )
    policy.tick([near, far, never, lost], 0.0)
    ranks = [policy.rank(live, _ask(0), 0.0) for live in (near, far, never, lost)]
    assert ranks[0] == pytest.approx(ranks[1] / 4)
    assert ranks[1] == ranks[2] == ranks[3] == pytest.approx(10.0, rel=0.1)
    unknown = POLICIES["least_slack"](_Known())
    assert unknown.rank(_live("any", deadline_s=1.0, attained_s=3.0), _ask(0), 0.0) == 3.0


def test_the_gittins_index_goes_by_what_is_likely_to_end_soon() -> None:
    # Half of them end after a second; who has gone beyond that has ten more to go.
    known = _Known(mixed=[1.0] * 50 + [11.0] * 50, even=[4.0] * 100)
    policy = POLICIES["gittins"](known)
    young, old = _live("mixed"), _live("mixed", attained_s=1.5)
    even, new = _live("even"), _live("new", attained_s=2.5)
    policy.tick([young, old, even, new], 0.0)
    ranks = [policy.rank(live, _ask(0), 0.0) for live in (young, new, even, old)]
    assert ranks == sorted(ranks)
    assert ranks[0] == pytest.approx(2.0, rel=0.05) and ranks[3] == pytest.approx(9.5, rel=0.05)


class _Fixed:
    """The policy whose ranks are ``of(live)``."""

    demands = True

    def __init__(self, of: Callable[[Live], float]) -> None:
        self._of = of

    def tick(self, lives: Collection[Live], now_s: float) -> None:
        pass

    def rank(self, live: Live, ask: Ask, now_s: float) -> float:
        return self._of(live)

    def served(self, live: Live, prompt_tokens: int, output_tokens: int) -> None:
        pass


@given(
    demand=st.floats(1e-6, 1e6),
    other=st.floats(0.0, 1e6),
    ageing_s=st.floats(0.1, 1e4),
)
def test_a_wait_has_an_end_whatever_else_comes(
    demand: float, other: float, ageing_s: float
) -> None:
    demands = {"old": demand, "new": other}
    order = Order(_Fixed(lambda live: demands[live.key.name]), OrderConfig(ageing_s=ageing_s))
    bound_s = ageing_s * demand / LEAST_S
    old = order.place(_live("old"), _ask(1), bound_s)
    new = order.place(_live("new"), _ask(2, bound_s), bound_s)
    assert old < new


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.floats(0.01, 1.0)), max_size=200))
def test_no_tenant_gets_far_ahead_of_another_that_has_work(turns: list[tuple[str, float]]) -> None:
    lead_s = 2.0
    config = OrderConfig(ageing_s=0, tenant_lead_s=lead_s)
    wishes = {"x": 1.0, "y": 5.0, "z": 9.0}
    order = Order(_Fixed(lambda live: wishes[live.key.tenant]), config)
    lives = [_live(tenant, tenant) for tenant in "xyz"]
    had = dict.fromkeys("xyz", 0.0)
    for _, amount_s in turns:
        order.tick(lives, 0.0)
        first = min(lives, key=lambda live: order.place(live, _ask(0), 0.0))
        order.served(first, 0, 1, amount_s)
        had[first.key.tenant] += amount_s
        assert max(had.values()) - min(had.values()) <= lead_s + 1.0 + 1e-9


def test_a_tenant_that_leaves_while_ahead_is_still_ahead_when_it_is_back() -> None:
    order = Order(_Fixed(lambda live: 1.0), OrderConfig(tenant_lead_s=2.0))
    greedy, other = _live("greedy", "g"), _live("other", "o")
    order.tick([greedy, other], 0.0)
    order.served(greedy, 0, 1, 3.0)
    order.tick([other], 1.0)
    order.tick([greedy, other], 2.0)
    assert order.place(greedy, _ask(1), 2.0).ahead
    assert not order.place(other, _ask(2), 2.0).ahead


def test_without_a_bound_nothing_is_counted_of_tenants() -> None:
    order = Order(_Fixed(lambda live: 1.0), OrderConfig())
    live = _live("a", "t")
    order.tick([live], 0.0)
    order.served(live, 0, 1, math.inf)
    assert not order.place(live, _ask(1), 0.0).ahead


def test_the_oracle_is_in_no_table() -> None:
    with pytest.raises(KeyError):
        POLICIES["oracle"]
