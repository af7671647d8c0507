"""Decisions of the app: which replica, how many, and errors that travel as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from serving.app.autoscaling import replicas_wanted
from serving.app.backlog import MOST_SENDERS, Backlog
from serving.app.config import ReplicasConfig
from serving.app.messages import Refusal, Standing, Ticket
from serving.app.placement import ReplicaOrder, policy_named
from serving.errors import ContextTooLong, EngineDead, Overloaded
from serving.lora.placement import AdapterHome, RankAware, ReplicaState, Wanted
from serving.lora.step_model import StepModel
from serving.request import Delta, Finish, Request, Sampling, Usage


class Clock:
    """Time is what the test says."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def by_tokens() -> ReplicaOrder:
    return ReplicaOrder(None, Clock(), 5.0)


def test_what_was_sent_since_the_report_counts() -> None:
    order = by_tokens()
    order.report("a", Standing(1, 100))
    order.report("b", Standing(1, 300))
    assert order.order(["a", "b"], Ticket()) == ["a", "b"]
    order.sent("a", Ticket(tokens=250))
    assert order.order(["a", "b"], Ticket()) == ["b", "a"]  # 350 against 300
    order.report("a", Standing(1, 100))  # the same report again
    assert order.tokens("a") == 350
    order.report("a", Standing(2, 120))
    assert order.tokens("a") == 120


def test_what_a_report_has_not_seen_counts_beside_it() -> None:
    order = by_tokens()
    for number in (1, 2, 3):
        order.sent("a", Ticket(tokens=10, sender="me", number=number))
    order.report("a", Standing(1, 10, seen={"me": 1, "other": 7}))
    assert order.tokens("a") == 10 + 20
    order.report("a", Standing(2, 20, seen={"me": 2}))  # the third never came there
    assert order.tokens("a") == 20
    order.sent("a", Ticket(tokens=10, sender="me", number=4))
    order.report("a", Standing(3, 10, seen={"me": 2}))
    assert order.tokens("a") == 10 + 10
    order.report("a", Standing(4, 10, seen={"me": 4}))
    assert order.tokens("a") == 10


def test_a_ticket_pins_and_avoids() -> None:
    order = by_tokens()
    assert order.order(["a", "b", "c"], Ticket(avoid=frozenset({"a"}))) == ["b", "c"]
    assert order.order(["a", "b"], Ticket(full=frozenset({"a"}))) == ["b", "a"]
    assert order.order(["a", "b"], Ticket(replica="b")) == ["b"]
    assert order.order(["a"], Ticket(replica="gone")) == ["a"]  # which says that it is gone


def test_probes_go_around() -> None:
    order = by_tokens()
    order.report("a", Standing(1, 100))
    probed = []
    for _ in range(4):
        probed.append(order.order(["a", "b"], Ticket(probe=True))[0])
        order.sent(probed[-1], Ticket(probe=True))
    assert probed == ["a", "b", "a", "b"]


class Recorded:
    """A policy that keeps what it was asked, and has the order of names backwards."""

    def __init__(self) -> None:
        self.asked: list[tuple[Wanted, list[ReplicaState]]] = []

    def order(self, wanted: Wanted, replicas: Sequence[ReplicaState]) -> list[str]:
        self.asked.append((wanted, list(replicas)))
        return sorted((replica.name for replica in replicas), reverse=True)


X = Wanted("x", 8, prompt_tokens=5, answer_tokens=100)


def test_a_policy_sees_reports_and_what_was_sent_since() -> None:
    policy, clock = Recorded(), Clock()
    order = ReplicaOrder(policy, clock, 5.0)
    standing = Standing(1, 0, (16,), ((7, 4),), ("y",), ("z",), 9, answer_tokens=30.0)
    order.report("a", standing)
    order.report("b", Standing(1, 50, answer_tokens=40.0))
    order.sent("a", Ticket(tokens=105, wanted=X, sender="me", number=1))
    assert order.order(["a", "b"], Ticket(tokens=105, wanted=X)) == ["b", "a"]
    wanted, states = policy.asked[-1]
    assert wanted == replace(X, answer_tokens=35.0)  # as answers of late were, on average
    assert (
        ReplicaState("a", (16,), ((7, 4), (5, 8)), frozenset({"x", "y"}), frozenset({"z"}), 9)
        in states
    )
    brief = replace(X, answer_tokens=3)  # more it cannot become
    order.order(["a", "b"], Ticket(wanted=brief))
    assert policy.asked[-1][0] == brief


def test_without_an_adapter_or_news_tokens_decide() -> None:
    policy, clock = Recorded(), Clock()
    order = ReplicaOrder(policy, clock, stale_s=5.0)
    for name, tokens in (("a", 1), ("b", 2), ("c", 3)):
        order.report(name, Standing(1, tokens))
    assert order.order(["a", "b", "c"], Ticket()) == ["a", "b", "c"] and not policy.asked
    clock.now_s = 4.0
    order.report("b", Standing(2, 20))
    order.report("c", Standing(2, 30))
    clock.now_s = 6.0  # nothing was heard of a for 6 s, and of d never
    assert order.order(["a", "b", "c", "d"], Ticket(wanted=X)) == ["c", "b", "d", "a"]
    clock.now_s = 60.0
    assert order.order(["a", "b", "c"], Ticket(wanted=X)) == ["a", "b", "c"]
    clock.now_s = 4.0
    full = Ticket(wanted=X, full=frozenset({"c"}), avoid=frozenset({"a"}))
    assert order.order(["a", "b", "c"], full) == ["b", "c"]


def test_a_policy_by_its_name() -> None:
    steps = StepModel(1, 0, 0, 0, 0, 0, 0, 1)
    assert policy_named("least_tokens", None, 1.0, list.reverse) is None
    assert isinstance(policy_named("rank_aware", steps, 1.0, list.reverse), RankAware)
    assert isinstance(policy_named("adapter_home", None, 1.0, list.reverse), AdapterHome)


def test_a_step_model_goes_with_rank_aware_placement() -> None:
    assert ReplicasConfig().policy == "least_tokens"
    assert ReplicasConfig(step_model="x.json").policy == "rank_aware"
    assert ReplicasConfig(placement="first_fit").policy == "first_fit"
    with pytest.raises(ValueError, match="needs step_model"):
        ReplicasConfig(placement="rank_aware")
    with pytest.raises(ValueError, match="no effect"):
        ReplicasConfig(placement="random", step_model="x.json")


def test_requests_wait_until_their_first_token_and_run_until_their_last() -> None:
    backlog = Backlog()
    backlog.add(request("r", 5, n=2), Ticket(wanted=X, sender="me", number=1))
    backlog.add(request("s", 7), Ticket(sender="me", number=3))
    assert (backlog.running, backlog.queued) == ((), ((5, 8), (7, 0)))
    backlog.take(delta("r", 0, 1))
    backlog.take(delta("r", 1, 2))
    assert (backlog.running, backlog.queued) == ((8, 8), ((7, 0),))
    backlog.take(delta("r", 0, 9, Finish.STOP))
    assert backlog.running == (8,)
    backlog.take(delta("r", 1, 20, Finish.LENGTH))
    assert backlog.running == () and backlog.answer_tokens == 10.0  # 20 tokens in two answers
    backlog.take(delta("s", 0, 30, Finish.STOP))
    assert backlog.answer_tokens == pytest.approx(10 + 0.05 * 20)
    backlog.add(request("t", 5), Ticket(wanted=X, sender="me", number=2))
    backlog.drop("t")
    backlog.drop("t")
    backlog.take(delta("t", 0, 1))  # of one that was cancelled
    assert (backlog.running, backlog.queued) == ((), ())
    assert backlog.seen == {"me": 3}


def test_senders_that_are_no_more_are_forgotten() -> None:
    backlog = Backlog()
    for number in range(MOST_SENDERS + 1):
        backlog.add(request(f"{number}", 1), Ticket(sender=f"{number}", number=1))
        backlog.add(request("again", 1), Ticket(sender="0", number=number))
    assert len(backlog.seen) == MOST_SENDERS and "1" not in backlog.seen
    assert backlog.seen["0"] == MOST_SENDERS


def request(name: str, prompt: int, n: int = 1) -> Request:
    return Request(name, (1,) * prompt, Sampling(4), n=n)


def delta(name: str, index: int, generated: int, finish: Finish | None = None) -> Delta:
    return Delta(name, index, (1,), "", Usage(5, 0, generated), finish=finish)


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
