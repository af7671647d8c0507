"""What is told of a run, and what is not."""

import numpy as np
import pytest

from hecate.report.curves import Training
from hecate.report.events import MOST_MOVES, MOST_OF_A_KIND, duration, events, jumps
from hecate.report.records import Damage, Logged, Metrics, Recovery, Start
from hecate.report.spent import Pause, Spent

BEGUN = (Start(0),)
UNHARMED, NO_TIME = Damage(), Spent()


def told(*lines, starts=BEGUN, damage=UNHARMED, spent=NO_TIME, recoveries=()):
    metrics = Metrics(tuple(Logged(s, 0.0, values, {}) for s, values in lines), (), damage)
    found = events(metrics, Training.of(metrics, starts), starts, spent, recoveries)
    return [(event.step, event.kind, event.text) for event in found]


def test_starts_and_another_number_of_ranks():
    starts = (
        Start(0, 0.0, 4, 1),
        Start(100, 0.0, 3, 1, cause="rank 2 was ended by SIGKILL"),
        Start(100, 0.0, 16, 2),
    )
    assert told(starts=starts) == [
        (0, "start", "begun on 4 ranks"),
        (
            100,
            "resume",
            "taken up again after step 100 on 3 ranks, before 4, since rank 2 was ended by SIGKILL",
        ),
        (100, "resume", "taken up again after step 100 on 16 ranks of 2 nodes, before 3"),
    ]


def test_a_start_tells_of_the_pause_before_it():
    starts = (Start(0, 0.0, 2, 1), Start(20, 0.0, 2, 1), Start(40, 0.0, 2, 1))
    pauses = (Pause(20, 90.0, True), Pause(30, 60.0, True), Pause(40, 0.0, True))
    assert told(starts=starts, spent=Spent(pauses=pauses)) == [
        (0, "start", "begun on 2 ranks"),
        (20, "resume", "taken up again after step 20 on 2 ranks; 1 min 30 s without training"),
        # after step 30 the file lacks what the start at 40 went on from
        (
            30,
            "pause",
            "1 min between two lines that no training accounts for, with a new start between them",
        ),
        (40, "resume", "taken up again after step 40 on 2 ranks"),
    ]


def test_a_recovery_is_told_with_the_start_that_it_led_to():
    cause = "rank 1 was ended by SIGKILL"
    starts = (Start(0, 0.0, 2, 1), *(Start(50, 0.0, 2, 1, cause=cause) for _ in range(2)))
    recoveries = (Recovery(50, cause, 57, 2, 2, {"leave": 0.5, "join": 1.0, "step": 0.5}),)
    spent = Spent(pauses=(Pause(50, 9.0, True),))
    first, second = told(starts=starts, spent=spent, recoveries=recoveries)[1:]
    again = "taken up again after step 50 on 2 ranks, since rank 1 was ended by SIGKILL"
    assert first == (
        50,
        "resume",
        f"{again} in step 58, 7 steps again; the first was done 2 s later",
    )
    assert second == (50, "resume", again), "one that failed before its first step"


def test_a_pause_and_a_file_that_goes_back():
    found = told(damage=Damage(back_to=(30,)), spent=Spent(pauses=(Pause(20, 7200.0, False),)))
    assert found[1:] == [
        (20, "pause", "2 h between two lines that no training accounts for, without a new start"),
        (30, "back", "the file goes back to step 30: what came later counts"),
    ]


def test_a_flat_noisy_or_falling_curve_has_no_jump():
    rng = np.random.default_rng(0)
    assert jumps(np.full(100, 3.0)) == []
    assert jumps(10 / np.arange(1, 100)) == []
    assert jumps(3 + 0.02 * rng.normal(size=1000)) == []


def test_a_jump_is_told_once():
    values = 3 + 0.01 * np.sin(np.arange(60))
    values[40:44] = 5.0
    assert jumps(values) == [40]
    values[40:44] = 3.2  # less than a tenth: not told
    assert jumps(values) == []


def test_the_first_values_have_nothing_to_be_measured_by():
    assert jumps(np.array([1.0, 9.0, 1.0, 9.0, 1.0])) == []
    assert jumps(np.array([1.0, 1.0, 1.0, 1.0, 1.0, 9.0])) == [5]
    assert jumps(np.array([np.nan] * 10 + [9.0])) == []


def test_a_jump_says_from_where_to_where():
    lines = [(step, {"loss": 3.0}) for step in range(1, 11)] + [(11, {"loss": 4.5})]
    assert told(*lines)[-1] == (11, "spike", "loss 4.5, usually 3 before")


def test_what_was_not_finite_is_told_with_its_first_step():
    lines = [(1, {"loss": 1.0}), (2, {"loss": np.nan}), (3, {"loss": np.inf})]
    assert told(*lines)[-1] == (2, "lost", "loss not finite in 2 lines, the first of step 2")


def test_steps_that_were_left_out_are_told_where_their_count_grew():
    lines = [(10 * n, {"skipped_steps": float(c)}) for n, c in enumerate((0, 0, 2, 2, 3), 1)]
    assert told(*lines)[1:] == [(30, "spike", "2 steps left out"), (50, "spike", "1 step left out")]


def test_the_greatest_changes_of_owners_are_told_and_the_rest_summed_up():
    lines = [(10 * n, {"load/moved_experts": float(n % 20)}) for n in range(1, 21)]
    found = told(*lines)[1:]
    assert found[-2] == (190, "moved", "19 experts changed owners in steps 181 to 190")
    # 1 to 19 make 190, of which 19 + 18 + ... + 14 = 99 are told.
    assert found[-1] == (200, "moved", "91 more changes of owners in 13 other lines")
    assert len(found) == MOST_MOVES + 1


def test_many_of_a_kind_are_counted():
    starts = [Start(step) for step in range(30)]
    found = told(starts=starts)
    assert len(found) == MOST_OF_A_KIND + 1
    assert found[-1] == (12, "resume", "18 more starts from here on")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"),
        (3.14159, "3.14 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600 + 125, "1 h 2 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_as_people_say_them(seconds, text):
    assert duration(seconds) == text
