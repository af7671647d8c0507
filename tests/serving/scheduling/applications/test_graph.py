"""A class's graph: what is foretold of an instance from what it has shown."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.graph import MOST_UNITS, OTHER, PDGraph
from serving.scheduling.applications.live import ClassKey, Live, OpenCall, OpenUnit
from serving.scheduling.applications.traces import Call, Kind, Trace, UnitRun

RATES = Rates(prefill_token_s=1.0, decode_token_s=10.0, pace_s=20.0)


def graph(window: int = 1000, enough: int = 30, most_bytes: int = 2**30) -> PDGraph:
    return PDGraph(window, enough, most_bytes, lambda: RATES)


def llm(unit: str, *calls: tuple[int, ...], began_s: float = -1.0) -> UnitRun:
    alone_s = max((RATES.alone_s(Call(*call)) for call in calls), default=0.0)
    return UnitRun(unit, Kind.LLM, tuple(Call(*call) for call in calls), alone_s, False, began_s)


def tool(unit: str, seconds: float, began_s: float = -1.0) -> UnitRun:
    return UnitRun(unit, Kind.TOOL, (), seconds, False, began_s)


def live(*runs: UnitRun, opened: str = "", prompt_tokens: int = 1) -> Live:
    had_s = sum(RATES.work_s(call) for run in runs for call in run.calls)
    one = Live(ClassKey("t", "c"), "1", 0.0, attained_s=had_s, ended_s=had_s, runs=list(runs))
    if opened:
        unit = OpenUnit(opened, Kind.LLM, 0.0, running={"a": OpenCall(prompt_tokens)})
        one.open_units[opened] = unit
    return one


def spans(traces: list[Trace], done: int) -> tuple[list[float], list[float]]:
    """What was left of device and path after so many units, if one came after another."""
    rest = [trace.runs[done:] for trace in traces]
    work = [sum(RATES.work_s(call) for run in runs for call in run.calls) for runs in rest]
    return sorted(work), sorted(sum(run.seconds for run in runs) for runs in rest)


def test_without_enough_traces_nothing_is_foretold() -> None:
    kept = graph(enough=3)
    for _ in range(2):
        kept.add(Trace((llm("a", (1, 1)),)))
    assert not kept.prospect(live()).device_s.size
    kept.add(Trace((llm("a", (1, 1)),)))
    assert kept.prospect(live()).device_s.tolist() == [11.0] * 3


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.integers(0, 9)),
            min_size=1,
            max_size=5,
        ),
        min_size=1,
        max_size=20,
    )
)
def test_what_is_left_is_what_others_did_after_the_same(
    shown: list[list[tuple[str, int, int]]],
) -> None:
    """Of every point of every trace, with no more than one trace asked for."""
    traces = [Trace(tuple(llm(unit, (p, o)) for unit, p, o in runs)) for runs in shown]
    kept = graph(enough=1)
    for trace in traces:
        kept.add(trace)
    assert kept.traces == tuple(Trace(tuple(_placed(trace))) for trace in traces)
    for trace in traces:
        for done in range(len(trace.runs)):
            units = sorted(run.unit for run in trace.runs[:done])
            like = [
                other
                for other in traces
                if sorted(run.unit for run in other.runs[:done]) == units
                and len(other.runs) >= done
            ]
            found = kept.prospect(live(*trace.runs[:done]))
            if len(like) < 10:  # of more, and correlated ones, some are chosen
                work, path = spans(like, done)
                np.testing.assert_allclose(found.device_s, work)
                np.testing.assert_allclose(found.path_s, path, atol=1e-6)


def _placed(trace: Trace) -> list[UnitRun]:
    runs, ended_s = [], 0.0
    for run in trace.runs:
        runs.append(UnitRun(run.unit, run.kind, run.calls, run.seconds, False, ended_s))
        ended_s += run.seconds
    return runs


def test_units_side_by_side_count_once_on_the_path() -> None:
    kept = graph(enough=1)
    kept.add(
        Trace(
            (
                llm("plan", (0, 1), began_s=0.0),  # ends at 20
                tool("short", 5.0, began_s=21.0),
                tool("long", 9.0, began_s=21.0),
                llm("answer", (0, 2), began_s=32.0),  # 2 after the longer one
            )
        )
    )
    assert kept.prospect(live()).path_s.tolist() == [20 + 1 + 9 + 2 + 40]
    plan = llm("plan", (0, 1))
    assert kept.prospect(live(plan)).path_s.tolist() == [1 + 9 + 2 + 40]
    assert kept.prospect(live(plan, tool("short", 5.0))).path_s.tolist() == [4 + 2 + 40]


def test_waiting_in_the_queue_is_not_on_the_path() -> None:
    kept = graph(enough=1)
    waited = UnitRun("a", Kind.LLM, (Call(0, 1),), 500.0, False, 0.0)
    kept.add(Trace((waited, tool("b", 3.0, began_s=500.0))))
    assert kept.prospect(live()).path_s.tolist() == [23.0]


def test_what_is_open_tells_which_branch_was_taken() -> None:
    kept = graph()
    for _ in range(40):
        kept.add(Trace((llm("a", (0, 1)), llm("short", (0, 2)))))
        kept.add(Trace((llm("a", (0, 1)), llm("long", (0, 50)))))
    a = llm("a", (0, 1))
    assert set(kept.prospect(live(a)).device_s) == {20.0, 500.0}
    assert set(kept.prospect(live(a, opened="short")).device_s) == {20.0}
    assert set(kept.prospect(live(a, opened="long")).device_s) == {500.0}


def test_correlated_features_narrow_what_is_to_come() -> None:
    """How many claims there are is told by how long the list of them is."""
    rng = np.random.default_rng(0)
    kept = graph()
    for _ in range(600):
        claims = int(rng.integers(1, 11))
        kept.add(
            Trace(
                (
                    llm("list", (100, 10 * claims + int(rng.integers(0, 3)))),
                    llm("check", *[(20, int(rng.integers(4, 7)))] * claims),
                )
            )
        )
    for claims in (2, 5, 9):
        found = kept.prospect(live(llm("list", (100, 10 * claims + 1)))).device_s
        expected = claims * (20 + 50)
        assert np.median(found) == pytest.approx(expected, rel=0.15)
        assert np.quantile(found, 0.8) - np.quantile(found, 0.2) < 0.5 * expected
    start = kept.prospect(live()).device_s
    assert np.quantile(start, 0.9) > 3 * np.quantile(start, 0.1)


def test_a_prompt_that_waits_is_a_feature_too() -> None:
    rng = np.random.default_rng(1)
    kept = graph()
    for _ in range(500):
        tokens = int(rng.integers(10, 1000))
        kept.add(Trace((llm("call", (tokens, tokens // 10)),)))
    small = kept.prospect(live(opened="call", prompt_tokens=50)).device_s
    large = kept.prospect(live(opened="call", prompt_tokens=900)).device_s
    assert np.median(small) == pytest.approx(100, rel=0.5)
    assert np.median(large) == pytest.approx(1800, rel=0.15)


def test_what_is_not_correlated_narrows_nothing_and_is_shared() -> None:
    rng = np.random.default_rng(2)
    kept = graph()
    for _ in range(200):
        tokens = rng.integers(1, 100, 4).tolist()
        kept.add(Trace((llm("a", (tokens[0], tokens[1])), llm("b", (tokens[2], tokens[3])))))
    one = kept.prospect(live(llm("a", (1, 1)), opened="b"))
    other = kept.prospect(live(llm("a", (99, 99)), opened="b"))
    assert one.device_s is other.device_s and one.device_s.size == 200


def test_an_instance_with_units_never_seen_is_like_those_that_had_as_much() -> None:
    kept = graph(enough=2)
    for output in (1, 5, 9):
        kept.add(Trace((llm("a", (0, output)),)))
    found = kept.prospect(live(llm("new", (30, 0))))
    assert found.device_s.tolist() == [20.0, 60.0] and found.attained_s == 30.0
    assert not kept.prospect(live(llm("new", (1000, 0)))).device_s.size


def test_a_loop_that_went_on_for_longer_than_most_is_like_its_last_turns() -> None:
    rng = np.random.default_rng(3)
    kept = graph()
    for _ in range(300):
        kept.add(Trace(tuple(llm("think", (0, 1)) for _ in range(int(rng.geometric(0.5))))))
    deep = [llm("think", (0, 1)) for _ in range(40)]
    found = kept.prospect(live(*deep, opened="think")).device_s
    assert found.size >= 30 and found.min() == 10.0


def test_the_newest_are_kept_within_the_window_and_the_memory() -> None:
    kept = graph(window=50)
    for number in range(200):
        kept.add(Trace((llm("a", (number, 1, number)),)))
    assert len(kept) == 50 and kept.traces[0].runs[0].calls[0].prompt_tokens == 150
    small = graph(most_bytes=20_000)
    for number in range(200):
        small.add(Trace((llm("a", (number, 1, number)),)))
    assert small.size_bytes <= 20_000 and 20 < len(small) < 60
    assert small.traces[-1].runs[0].calls[0].prompt_tokens == 199


def test_a_class_that_changed_forgets_what_it_was() -> None:
    rng = np.random.default_rng(4)
    kept = graph()
    for _ in range(500):
        kept.add(Trace((llm("a", (0, int(rng.integers(10, 20)))),)))
    assert kept.drifts == 0
    for _ in range(100):
        kept.add(Trace((llm("a", (0, int(rng.integers(10, 20)))), llm("b", (0, 100)))))
    assert kept.drifts == 1 and len(kept) <= 130
    assert np.quantile(kept.prospect(live()).device_s, 0.25) > 1000


def test_endless_names_of_units_are_one_after_so_many() -> None:
    kept = graph(window=100)
    for number in range(400):
        kept.add(Trace((llm(f"unit{number}", (1, 1)), llm("end", (1, 1)))))
    assert len(kept.units) <= MOST_UNITS and OTHER in kept.units and "end" in kept.units
    assert kept.prospect(live(llm("unit12345", (1, 1)), opened="end")).device_s.tolist()
