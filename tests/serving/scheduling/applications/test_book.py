"""The book: instances begin, are served, end, and leave what they did behind."""

import numpy as np
import pytest

from serving.scheduling.applications.book import Book
from serving.scheduling.applications.config import HistoryConfig
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.live import ClassKey
from serving.scheduling.applications.tags import UNTAGGED, Tags
from serving.scheduling.applications.traces import Call, Kind, Trace, UnitRun

RATES = Rates(prefill_token_s=1.0, decode_token_s=10.0, pace_s=20.0)
KEY = ClassKey("acme", "agent")
AGENT = Tags("agent", "1", "plan")


def book(**settings: float) -> Book:
    return Book(HistoryConfig.model_validate(settings), lambda: RATES)


def test_an_instance_leaves_its_units_behind_in_the_order_in_which_they_ended() -> None:
    kept = book()
    live = kept.begin(AGENT, "acme", 100.0)
    kept.call_started(live, "plan", "a", 7, 100.0)
    kept.call_started(live, "plan", "b", 5, 101.0)
    kept.served(live, "a", 7, 0)
    kept.served(live, "a", 0, 2)
    assert live.attained_s == 7 + 20 and live.ended_s == 0
    kept.call_ended(live, "a", 103.0, output_tokens=3)
    assert list(live.open_units) == ["plan"]  # b is not answered
    kept.call_ended(live, "b", 104.0, output_tokens=1, cached_tokens=4)
    assert live.attained_s == live.ended_s == 7 + 30 + 1 + 10
    assert kept.begin(AGENT, "acme", 105.0) is live
    kept.unit_started(live, "grep", Kind.SEARCH, 105.0)
    assert kept.unit_ended(live, "grep", 106.5, failed=True)
    assert not kept.unit_ended(live, "grep", 107.0)
    kept.end(live, 107.0)
    assert not kept.lives
    assert kept.graphs[KEY].traces == (
        Trace(
            (
                UnitRun("plan", Kind.LLM, (Call(7, 3), Call(5, 1, 4)), 4.0, False, 0.0),
                UnitRun("grep", Kind.SEARCH, (), 1.5, True, 5.0),
            )
        ),
    )


def test_an_untagged_request_is_an_instance_of_its_own() -> None:
    kept = book()
    first, second = (kept.begin(UNTAGGED, "acme", 0.0) for _ in range(2))
    assert first is not second and first.key == ClassKey("acme", "")
    for live in (first, second):
        kept.call_started(live, "call", "a", 1, 0.0)
        kept.call_ended(live, "a", 1.0, output_tokens=1)
    assert not kept.lives and len(kept.graphs[ClassKey("acme")]) == 2


def test_what_is_computed_again_is_no_progress() -> None:
    kept = book()
    live = kept.begin(AGENT, "acme", 0.0)
    kept.call_started(live, "plan", "a", 10, 0.0)
    kept.served(live, "a", 10, 0)
    kept.served(live, "a", 6, 0)
    assert live.attained_s == 10.0


def test_the_end_waits_for_requests_and_not_for_tools() -> None:
    kept = book()
    live = kept.begin(AGENT, "acme", 0.0)
    kept.call_started(live, "plan", "a", 1, 0.0)
    kept.unit_started(live, "run", Kind.CONTAINER, 0.0)
    kept.end(live, 1.0)
    assert list(live.open_units) == ["plan"] and list(kept.lives) == [live]
    kept.call_ended(live, "a", 2.0, output_tokens=1)
    assert not kept.lives


def test_runs_of_a_tool_side_by_side_are_one_unit() -> None:
    kept = book()
    live = kept.begin(AGENT, "acme", 0.0)
    kept.unit_started(live, "grep", Kind.SEARCH, 0.0, run="1")
    kept.unit_started(live, "grep", Kind.SEARCH, 1.0, run="2")
    kept.unit_ended(live, "grep", 2.0, run="1")
    assert not live.runs
    kept.unit_ended(live, "grep", 3.0, run="2")
    assert [run.seconds for run in live.runs] == [3.0]


def test_a_tool_that_hangs_fails_and_an_idle_instance_ends() -> None:
    kept = book(hang_s=30, idle_s=40)
    live = kept.begin(AGENT, "acme", 0.0)
    kept.unit_started(live, "run", Kind.CONTAINER, 0.0)
    kept.tick(29.0)
    assert live.open_units
    kept.tick(30.0)
    assert not live.open_units and live.runs[0].failed and kept.hung == 1
    assert not kept.unit_ended(live, "run", 31.0)
    kept.tick(69.0)
    assert kept.lives
    kept.tick(70.0)
    assert not kept.lives and kept.idled == 1


@pytest.mark.parametrize("jump_s", [-1e6, 1e6])
def test_a_clock_that_jumps_ends_nothing(jump_s: float) -> None:
    kept = book(hang_s=200, idle_s=200)
    live = kept.begin(AGENT, "acme", 0.0)
    kept.unit_started(live, "run", Kind.CONTAINER, 0.0)
    kept.tick(1.0)
    kept.tick(1.0 + jump_s)
    assert live.open_units and kept.lives
    kept.unit_ended(live, "run", 2.0 + jump_s)
    assert 0 <= live.runs[0].seconds < 200


def test_a_prospect_is_what_others_did_after_as_many_units() -> None:
    kept = book(enough_traces=2)
    for instance, tokens in (("1", 1), ("2", 3)):
        live = kept.begin(Tags("agent", instance), "acme", 0.0)
        for unit in ("plan", "answer"):
            kept.call_started(live, unit, unit, 4, 0.0)
            kept.call_ended(live, unit, 1.0, output_tokens=tokens)
        kept.end(live, 2.0)
    live = kept.begin(Tags("agent", "3"), "acme", 3.0)
    np.testing.assert_array_equal(kept.prospect(live).device_s, [28.0, 68.0])
    kept.call_started(live, "plan", "a", 4, 3.0)
    kept.served(live, "a", 4, 2)
    assert kept.prospect(live) is kept.prospect(live)
    kept.call_ended(live, "a", 4.0, output_tokens=2)
    prospect = kept.prospect(live)
    assert prospect.attained_s == 24.0
    np.testing.assert_array_equal(prospect.device_s, [14.0, 34.0])
    np.testing.assert_array_equal(prospect.path_s, [24.0, 64.0])
