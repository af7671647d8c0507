"""What is begun ahead, given up, kept and counted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.scheduling.applications.traces import Kind, Trace, UnitRun
from serving.scheduling.prewarm.coming import coming, overdue
from serving.scheduling.prewarm.config import PrewarmConfig
from serving.scheduling.prewarm.decide import Chance, Open, Want, chance_of, decide
from serving.scheduling.prewarm.keeping import Claim, Kept, fill, keeping_order
from serving.scheduling.prewarm.ledger import Ledger
from serving.scheduling.prewarm.shapes import START, Shape, shape_of
from serving.scheduling.prewarm.threshold import Threshold

A, B, C = (Want(owner, "python") for owner in "abc")


def trace(*runs: tuple[str, float]) -> Trace:
    kinds = {"run": Kind.CONTAINER, "find": Kind.SEARCH}
    return Trace(tuple(UnitRun(u, kinds.get(u, Kind.LLM), (), s) for u, s in runs))


def looped() -> Shape:
    """``think`` of 1 to 10 s; then, of ten, six times ``run`` of 2 s, and to the end."""
    ran = [trace(("think", k), ("run", 2.0)) for k in range(1, 7)]
    return shape_of([*ran, *(trace(("think", k)) for k in range(7, 11))])


def test_a_shape_counts_what_follows_and_leaves_failed_runs_times_out() -> None:
    shape = shape_of(
        [
            trace(("a", 2.0), ("b", 1.0), ("a", 1.0)),
            Trace((UnitRun("a", Kind.LLM, (), 600.0, failed=True),)),
        ]
    )
    assert shape.after[START] == {"a": 1.0}
    assert shape.after["a"] == {"b": 1 / 3} and shape.after["b"] == {"a": 1.0}
    assert list(shape.seconds["a"]) == [1.0, 2.0]


def test_the_chance_is_the_branchs_times_that_of_ending_in_time() -> None:
    shape = looped()
    (found,) = coming(shape, "think", 0.0, {"run"})
    assert found.probability == pytest.approx(0.6)
    assert found.within(3.0) == pytest.approx(0.6 * 0.3)
    # after 8 s two of ten are left, of which one ends within a second
    (found,) = coming(shape, "think", 8.0, {"run"})
    assert found.within(1.0) == pytest.approx(0.6 * 0.5)


def test_two_units_ahead_times_add_and_probabilities_multiply() -> None:
    shape = shape_of([trace(("a", 1.0), ("b", 2.0), ("c", 1.0)), trace(("a", 1.0), ("d", 1.0))])
    (found,) = coming(shape, "a", 0.5, {"c"})
    assert found.probability == 0.5
    assert found.within(2.4) == 0 and found.within(2.5) == 0.5
    assert coming(shape, "a", 0.5, {"c"}, depth=1) == ()


def test_nothing_is_looked_for_behind_a_unit_that_needs_it_itself() -> None:
    shape = shape_of([trace(("a", 1.0), ("run", 1.0), ("run", 1.0))])
    assert [one.unit for one in coming(shape, "a", 0.0, {"run"})] == ["run"]


def test_unknown_units_promise_nothing() -> None:
    assert coming(looped(), "other", 0.0, {"run"}) == ()
    assert overdue(looped(), "other", 5.0) == 0.0


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=40),
    st.floats(0, 120),
    st.floats(0, 50),
)
def test_chances_are_chances_and_grow_with_the_time_to_warm(
    seconds: list[float], elapsed_s: float, warm_s: float
) -> None:
    shape = shape_of([trace(("a", s), ("run", 1.0)) for s in seconds])
    config = PrewarmConfig()
    less, more = (
        chance_of(A, shape, [Open("a", elapsed_s)], {"run"}, config, each).soon
        for each in (warm_s, 2 * warm_s)
    )
    assert 0 <= less <= more <= 1
    left = [s - elapsed_s for s in seconds if s > elapsed_s]
    within = sum(s <= warm_s for s in left) / len(left) if left else 0.0
    assert less == pytest.approx(within, abs=1 / len(seconds) + 1e-9)


def test_what_lasts_longer_than_it_ever_did_is_late() -> None:
    config = PrewarmConfig(patience_s=1.0)
    assert not chance_of(A, looped(), [Open("think", 10.5)], {"run"}, config, 1.0).late
    assert chance_of(A, looped(), [Open("think", 11.5)], {"run"}, config, 1.0).late


def test_who_goes_first_is_warmed_first_and_no_more_than_may() -> None:
    chances = [Chance(A, 0.2, 0.5), Chance(B, 0.05, 0.5), Chance(C, 0.9, 0.9)]
    config = PrewarmConfig(most=1)
    assert decide(chances, (), config, 0.1).begin == (A,)
    config = PrewarmConfig(most=8)
    assert decide(chances, (), config, 0.1).begin == (A, C)
    assert decide(chances, (A,), config, 0.1).begin == (C,)


def test_what_will_not_be_needed_is_given_up_and_makes_room() -> None:
    config = PrewarmConfig(most=1)
    assert decide([Chance(B, 0.5, 0.5)], (A,), config, 0.1) == decide(
        [Chance(A, 0.0, 0.0), Chance(B, 0.5, 0.5)], (A,), config, 0.1
    )
    found = decide([Chance(A, 0.9, 0.9, late=True), Chance(B, 0.5, 0.5)], (A,), config, 0.1)
    assert (found.give_up, found.begin) == ((A,), (B,))


def test_a_chance_that_is_small_for_now_gives_nothing_up() -> None:
    assert decide([Chance(A, 0.0, 0.5)], (A,), PrewarmConfig(), 0.1).give_up == ()


def test_keeping_is_by_claim_then_rank_then_use() -> None:
    wanted = [
        Kept("old", Claim.NONE, 0.0, used=1),
        Kept("new", Claim.NONE, 0.0, used=2),
        Kept("later", Claim.LATER, 1.0),
        Kept("shared", Claim.LATER, 9.0),
        Kept("shared", Claim.NOW, 7.0),
        Kept("urgent", Claim.NOW, 3.0),
        Kept("soon", Claim.SOON, 0.5),
    ]
    order = keeping_order(wanted)
    assert order == ["urgent", "shared", "soon", "later", "new", "old"]
    assert fill(order, ["new", "stranger", "later"], 4) == (
        ["urgent", "shared", "soon"],
        ["stranger", "new"],
    )
    assert fill(order, ["new"], 6) == (["urgent", "shared", "soon", "later", "old"], [])


def test_the_ledger_counts_what_was_hidden_and_what_idled() -> None:
    ledger = Ledger()
    assert ledger.use(A, 0.0, 2.0) == 2.0  # cold
    ledger.begin(A, 10.0, 2.0)
    assert ledger.use(A, 11.5, 2.0) == pytest.approx(0.5)  # on its way
    ledger.begin(A, 20.0, 2.0)
    assert ledger.use(A, 25.0, 2.0) == 0.0  # ready for 3 s
    ledger.begin(B, 30.0, 2.0)
    ledger.give_up(B, 31.0)
    ledger.give_up(B, 31.0)
    assert (ledger.uses, ledger.hidden, ledger.begun, ledger.given_up) == (3, 1, 3, 1)
    assert ledger.cold_s == 6.0 and ledger.saved_s == pytest.approx(3.5)
    assert (ledger.idle_s, ledger.wasted_s) == (3.0, 1.0)
    assert not ledger.warmed


def test_the_threshold_finds_where_the_waste_is_what_is_allowed() -> None:
    """Units of exponential times: begun at chance K, what is saved and held is known."""
    threshold = Threshold(0.5, budget=1.0)
    rng = np.random.default_rng(0)
    saved = held = 0.0
    for _ in range(4000):
        # begun so that it is ready at the quantile of the chance it was begun at
        margin = rng.normal() - np.log(threshold.chance / (1 - threshold.chance))
        saved += 1.0 if margin > 0 else max(0.0, 1.0 + margin)
        held += max(0.0, margin)
        threshold.learn(saved, held)
    before = saved, held
    for _ in range(2000):
        margin = rng.normal() - np.log(threshold.chance / (1 - threshold.chance))
        saved += 1.0 if margin > 0 else max(0.0, 1.0 + margin)
        held += max(0.0, margin)
        threshold.learn(saved, held)
    assert (held - before[1]) / (saved - before[0]) == pytest.approx(1.0, abs=0.25)


def test_a_threshold_without_a_budget_stays() -> None:
    threshold = Threshold(0.3, budget=0.0)
    threshold.learn(1.0, 100.0)
    assert threshold.chance == 0.3
