"""Decisions of the app: which replica, how many, and errors that travel as values."""

from __future__ import annotations

import pytest

from serving.app.autoscaling import replicas_wanted
from serving.app.messages import Refusal, Ticket
from serving.app.placement import LeastTokens
from serving.errors import ContextTooLong, EngineDead, Overloaded


def test_what_was_sent_since_the_report_counts() -> None:
    placement = LeastTokens()
    placement.report("a", 1, 100)
    placement.report("b", 1, 300)
    assert placement.order(["a", "b"], Ticket()) == ["a", "b"]
    placement.sent("a", Ticket(tokens=250))
    assert placement.order(["a", "b"], Ticket()) == ["b", "a"]  # 350 against 300
    placement.report("a", 1, 100)  # the same report again
    assert placement.tokens("a") == 350
    placement.report("a", 2, 120)
    assert placement.tokens("a") == 120


def test_a_ticket_pins_and_avoids() -> None:
    placement = LeastTokens()
    assert placement.order(["a", "b", "c"], Ticket(avoid=frozenset({"a"}))) == ["b", "c"]
    assert placement.order(["a", "b"], Ticket(full=frozenset({"a"}))) == ["b", "a"]
    assert placement.order(["a", "b"], Ticket(replica="b")) == ["b"]
    assert placement.order(["a"], Ticket(replica="gone")) == ["a"]  # which says that it is gone


def test_probes_go_around() -> None:
    placement = LeastTokens()
    placement.report("a", 1, 100)
    probed = []
    for _ in range(4):
        probed.append(placement.order(["a", "b"], Ticket(probe=True))[0])
        placement.sent(probed[-1], Ticket(probe=True))
    assert probed == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("waiting", "tokens", "wanted"), [(0, 0, 1), (8, 0, 1), (9, 0, 2), (0, 2500, 3), (40, 100, 5)]
)
def test_the_fuller_of_queue_and_tokens_decides(waiting: int, tokens: int, wanted: int) -> None:
    assert replicas_wanted(waiting, tokens, target_waiting=8, target_tokens=1000) == wanted


@pytest.mark.parametrize(
    "error",
    [
        ContextTooLong("long", got="9", expected="8", fix="cut", param="prompt"),
        Overloaded("full", retry_after_s=2.5, got="9", fix="wait"),
        EngineDead("dead", got="signal 9"),
    ],
)
def test_errors_travel(error: ContextTooLong | Overloaded | EngineDead) -> None:
    again = Refusal.of(error).error()
    assert type(again) is type(error) and str(again) == str(error)
    assert vars(again) == vars(error)
