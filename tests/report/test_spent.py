"""Where time went, by hand."""

import pytest

from hecate.report.curves import Training
from hecate.report.records import Logged, Metrics, Start
from hecate.report.spent import phase_areas, time_spent


def line(step, time_s, **phases):
    return Logged(step, time_s, {f"seconds/{name}": s for name, s in phases.items()}, {})


def test_every_second_goes_somewhere_once():
    metrics = Metrics(
        (
            line(10, 100.0, forward=6.0, backward=2.0),
            line(20, 109.0, forward=5.0, backward=3.0),  # 1 s in no phase
            line(30, 120.0, forward=7.0),  # after 3 s of evaluation: 1 s in no phase
        ),
        (Logged(20, 112.0, {"eval/loss": 1.0}, {}),),
    )
    spent = time_spent(metrics, [Start(0)])
    assert spent.phases == {"forward": 18.0, "backward": 5.0}
    assert (spent.evaluations_s, spent.rest_s, spent.pauses) == (3.0, 2.0, ())
    assert spent.total_s == 28.0 == (120 - 100) + 8


def test_a_run_that_was_away_did_not_work():
    metrics = Metrics((line(10, 100.0, forward=8.0), line(20, 200.0, forward=8.0)))
    spent = time_spent(metrics, [Start(0), Start(10)])
    (pause,) = spent.pauses
    assert (pause.after_step, pause.seconds, pause.taken_up) == (10, 92.0, True)
    assert spent.rest_s == 0 and spent.paused_s == 92.0


@pytest.mark.parametrize(("gap_s", "pauses"), [(50.0, 0), (200.0, 1)])
def test_a_long_gap_without_a_start_is_a_pause(gap_s, pauses):
    metrics = Metrics((line(1, 0.0, forward=1.0), line(2, gap_s, forward=1.0)))
    found = time_spent(metrics, [])
    assert len(found.pauses) == pauses and not any(each.taken_up for each in found.pauses)
    assert found.rest_s == (0 if pauses else gap_s - 1)


def test_a_clock_that_goes_back_or_is_missing_costs_nothing():
    metrics = Metrics((line(1, 9.0, forward=1.0), line(2, 5.0, forward=1.0)))
    assert time_spent(metrics, []).total_s == 2.0
    metrics = Metrics((line(1, float("nan"), forward=1.0), line(2, 5.0, forward=1.0)))
    assert time_spent(metrics, []).total_s == 2.0


def test_areas_are_by_step():
    metrics = Metrics((line(10, 0.0, forward=5.0), line(15, 0.0, forward=5.0, gather=1.0)))
    areas = phase_areas(Training.of(metrics, [Start(0)]))
    assert areas.names == ["forward", "gather"] and areas.x == [10, 15]
    assert areas.seconds == [[0.5, 1.0], [None, 0.2]]
