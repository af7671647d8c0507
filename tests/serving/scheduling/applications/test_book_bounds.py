"""The book keeps its bounds, and its accounts, whatever comes in whatever order."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.scheduling.applications.book import MOST_CALLS, MOST_RUNS, Book
from serving.scheduling.applications.config import HistoryConfig
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.live import ClassKey, Live
from serving.scheduling.applications.tags import Tags
from serving.scheduling.applications.traces import Kind

RATES = Rates(prefill_token_s=1.0, decode_token_s=10.0, pace_s=20.0)


def book(**settings: float) -> Book:
    return Book(HistoryConfig.model_validate(settings), lambda: RATES)


def test_an_instance_that_never_ends_takes_bounded_memory_and_keeps_its_account() -> None:
    kept = book()
    live = kept.begin(Tags("agent", "1"), "acme", 0.0)
    for number in range(3 * MOST_RUNS):
        kept.call_started(live, "think", "a", 1, float(number))
        kept.call_ended(live, "a", number + 0.5, output_tokens=1)
    assert len(live.runs) == MOST_RUNS and live.attained_s == 3 * MOST_RUNS * 11
    kept.end(live, 1e6)
    trace = kept.graphs[ClassKey("acme", "agent")].traces[0]
    assert sum(RATES.work_s(call) for run in trace.runs for call in run.calls) == live.attained_s
    assert trace.runs[-1].seconds == pytest.approx(2 * MOST_RUNS + 0.5)


def test_a_unit_of_endless_calls_is_bounded_too() -> None:
    kept = book()
    live = kept.begin(Tags("agent", "1"), "acme", 0.0)
    kept.unit_started(live, "map", Kind.LLM, 0.0)
    for _ in range(2 * MOST_CALLS):
        kept.call_started(live, "map", "a", 1, 0.0)
        kept.call_ended(live, "a", 0.0, output_tokens=1)
    kept.unit_ended(live, "map", 1.0)
    (run,) = live.runs
    assert len(run.calls) == MOST_CALLS
    assert sum(RATES.work_s(call) for call in run.calls) == live.attained_s == 2 * MOST_CALLS * 11


def test_endless_instances_are_bounded_and_those_that_are_served_stay() -> None:
    kept = book(max_lives=100)
    served = kept.begin(Tags("agent", "served"), "acme", 0.0)
    kept.call_started(served, "call", "a", 1, 0.0)
    for number in range(1000):
        kept.begin(Tags("agent", str(number)), "acme", 1.0)
    assert len(kept.lives) == 100 and served in kept.lives
    assert kept.live(Tags("agent", "999"), "acme") is not None
    assert kept.live(Tags("agent", "5"), "acme") is None


def test_a_million_classes_would_take_no_more_than_a_thousand_do() -> None:
    """5000 here, of which each costs the same."""
    kept = book(max_classes=200)
    for number in range(5000):
        live = kept.begin(Tags(f"class{number}"), "acme", float(number))
        kept.call_started(live, "call", "a", 5, float(number))
        kept.call_ended(live, "a", number + 0.5, output_tokens=1)
    assert not kept.lives and len(kept.graphs) == 200 and kept.evicted == 4800
    assert sum(graph.size_bytes for graph in kept.graphs.values()) < 200 * 1000
    assert not (kept._prospects or kept._named or kept._held)


def test_a_call_of_an_instance_that_has_ended_is_one_of_its_own() -> None:
    kept = book()
    live = kept.begin(Tags("agent", "1"), "acme", 0.0)
    kept.call_started(live, "call", "a", 1, 0.0)
    kept.call_ended(live, "a", 1.0, output_tokens=1)
    kept.end(live, 2.0)
    kept.call_started(live, "call", "b", 1, 3.0)
    assert list(kept.lives) == [live]
    kept.call_ended(live, "b", 4.0, output_tokens=1)
    assert not kept.lives
    assert [len(trace.runs) for trace in kept.graphs[live.key].traces] == [1, 1]


def test_the_sooner_of_two_deadlines_holds_from_when_the_instance_came() -> None:
    kept = book()
    live = kept.begin(Tags("agent", "1"), "acme", 100.0)
    assert live.deadline_s == math.inf
    kept.begin(Tags("agent", "1", deadline_s=50.0), "acme", 120.0)
    kept.begin(Tags("agent", "1", deadline_s=90.0), "acme", 130.0)
    assert live.deadline_s == 150.0


def test_a_request_that_fails_counts_as_far_as_it_came() -> None:
    kept = book()
    live = kept.begin(Tags("agent", "1"), "acme", 0.0)
    kept.call_started(live, "call", "a", 100, 0.0)
    kept.served(live, "a", 40, 0)
    kept.call_ended(live, "a", 1.0, output_tokens=0, failed=True)
    assert live.attained_s == live.ended_s == 40 and live.runs[0].failed


EVENTS = st.tuples(
    st.sampled_from(["call", "served", "answer", "tool", "tool_end", "end", "tick"]),
    st.integers(0, 3),
    st.sampled_from("ab"),
    st.integers(0, 20),
    st.floats(-50, 400),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=60))
def test_accounts_hold_in_any_order_of_events(
    events: list[tuple[str, int, str, int, float]],
) -> None:
    kept = book(enough_traces=2, max_lives=3, max_classes=2)
    now_s = 0.0
    seen: set[Live] = set()
    for what, instance, unit, tokens, later_s in events:
        now_s += later_s
        tags = Tags(f"class{instance % 3}", str(instance), last=tokens == 20)
        live = kept.live(tags, "t") or kept.begin(tags, "t", now_s)
        seen.add(live)
        if what == "call":
            kept.call_started(live, unit, f"r{tokens % 3}", tokens, now_s)
        elif what == "served":
            kept.served(live, f"r{tokens % 3}", tokens, tokens)
        elif what == "answer":
            kept.call_ended(live, f"r{tokens % 3}", now_s, output_tokens=tokens)
        elif what == "tool":
            kept.unit_started(live, unit, Kind.TOOL, now_s, run=str(tokens % 2))
        elif what == "tool_end":
            kept.unit_ended(live, unit, now_s, run=str(tokens % 2), failed=tokens > 10)
        elif what == "end":
            kept.end(live, now_s)
        else:
            kept.tick(now_s)
        for each in seen:
            open_s = sum(opened.attained_s for opened in each.open_units.values())
            assert each.attained_s == pytest.approx(each.ended_s + open_s)
            assert all(opened.running or opened.held for opened in each.open_units.values())
            prospect = kept.prospect(each)
            assert prospect.attained_s == each.ended_s
            assert (prospect.device_s >= 0).all() and (prospect.path_s >= -1e-6).all()
        assert len(kept.graphs) <= 2
        held = [
            (each, opened.unit, run)
            for each in seen
            for opened in each.open_units.values()
            for run in opened.held
        ]
        assert set(held) == set(kept._held)
        assert set(kept._prospects) <= set(kept.lives)
