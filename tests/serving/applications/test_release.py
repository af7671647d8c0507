"""Whose turn it is, who goes although engines are full, and priorities that do not flutter."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from serving.applications.release import (
    MOST_OVERTAKING,
    STEP,
    Asked,
    gives_way,
    level,
    may_go,
    turn,
)
from serving.request import Request, Sampling
from serving.scheduling.applications.live import Ask, ClassKey, Live
from serving.scheduling.applications.order import Order, Place
from serving.scheduling.applications.policies import POLICIES
from serving.scheduling.applications.policies.config import OrderConfig
from serving.scheduling.applications.prospects import Prospect


class Unknown:
    """No history of anything."""

    def prospect(self, live: Live) -> Prospect:
        raise AssertionError("nobody asks")


def order(policy: str = "las") -> Order:
    return Order(POLICIES[policy](Unknown()), OrderConfig(margin=0.25))


def asked(
    rank: float, number: int, live: Live | None = None, *, n: int = 1, priority: int = 0
) -> Asked:
    live = live or Live(ClassKey("t", "c"), f"{number}", 0.0)
    request = Request(f"{number}", (1,), Sampling(4), n=n, priority=priority)
    return Asked(request, live, Ask(f"{number}", number, 0.0, 1, 4 * n), Place(False, rank, number))


def test_the_turn_is_the_first_ones_and_goes_to_its_own_most_urgent() -> None:
    ours = Live(ClassKey("t", "c"), "ours", 0.0)
    first, urgent = asked(1.0, 1, ours), asked(1.0, 2, ours, priority=-1)
    others = asked(2.0, 3, priority=-100)
    assert turn([first, others]) is first
    assert turn([others, first, urgent]) is urgent
    untagged = [
        asked(1.0, number, Live(ClassKey(tenant), "", 0.0), priority=priority)
        for number, tenant, priority in ((1, "a", 5), (2, "b", -100), (3, "a", 4))
    ]
    assert turn(untagged) is untagged[2]  # b's priority is nothing to a


BACK_S = 0.5


def test_engines_are_filled_and_only_the_much_more_urgent_goes_beyond() -> None:
    running = [asked(8.0, number) for number in range(3)]
    assert may_go(asked(9.0, 9), running, 4, order(), BACK_S)
    full = [*running, asked(2.0, 3)]
    assert not may_go(asked(8.0, 9), full, 4, order(), BACK_S)
    assert not may_go(asked(4.0, 9), full, 4, order(), BACK_S)  # not by twice, with its way back
    assert may_go(asked(3.7, 9), full, 4, order(), BACK_S)
    assert not may_go(asked(3.7, 9), full, 4, order(), 2.0)
    assert may_go(asked(3.7, 9, n=3), full, 4, order(), BACK_S)
    assert not may_go(asked(3.7, 9, n=4), full, 4, order(), BACK_S)
    assert may_go(asked(9.0, 9, n=9), [], 4, order(), BACK_S), "who needs more goes alone"
    assert not may_go(asked(0.1, 9), full, 4, order("request_fcfs"), BACK_S)


def test_what_is_small_is_not_interrupted() -> None:
    running = [asked(0.4, number) for number in range(4)]
    assert not may_go(asked(0.001, 9), running, 4, order(), BACK_S)


def test_overtaking_has_an_end() -> None:
    running: list[Asked] = []
    for number in range(100):
        each = asked(1e9 / 3**number, number)
        if not may_go(each, running, 4, order(), 1e-3):
            break
        running.append(each)
    assert len(running) == MOST_OVERTAKING * 4


def test_who_may_go_beyond_is_more_urgent_in_the_engine_too() -> None:
    ours = order()
    for rank in (0.002, 0.03, 0.9, 5.0, 77.0):
        waits, runs = Place(False, rank, 2), Place(False, 2 * rank + 1.01 * BACK_S, 1)
        assert gives_way(runs, waits, ours, BACK_S)
        assert level(waits, None, ours, BACK_S) < level(runs, None, ours, BACK_S)
    ahead, other = Place(True, 0.001, 1), Place(False, 1e9, 2)
    assert gives_way(ahead, other, ours, BACK_S) and not gives_way(other, ahead, ours, BACK_S)
    assert level(ahead, None, ours, BACK_S) > level(other, None, ours, BACK_S)
    assert level(ahead, None, order("request_fcfs"), BACK_S) == 0


@given(st.lists(st.floats(1e-4, 1e5), min_size=1, max_size=30), st.floats(1e-3, 10))
def test_a_level_moves_only_with_its_rank(ranks: list[float], back_s: float) -> None:
    ours = order()
    now = level(Place(False, ranks[0], 1), None, ours, back_s)
    for rank in ranks:
        exact = math.log(1 + rank / back_s, STEP)
        before, now = now, level(Place(False, rank, 1), now, ours, back_s)
        assert abs(exact - now) <= 1
        assert now == before or abs(exact - before) >= 1
