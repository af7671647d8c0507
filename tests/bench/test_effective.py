"""What of a run's time counts, on times worked out by hand."""

from __future__ import annotations

import pytest

from hecate.bench.effective import Course, best_interval


def course(*done_s: float) -> Course:
    return Course.of([{"step": step, "time_s": s} for step, s in enumerate(done_s, 1)])


def test_a_run_without_failures_is_all_effective() -> None:
    calm = course(10.0, 11.0, 12.0, 13.0)
    assert (calm.steps, calm.step_s, calm.paced(1.0, calm.done_s[-1])) == (3, 1.0, 1.0)
    assert calm.losses([]) == []


def test_a_failure_costs_the_work_since_the_save_and_the_way_back() -> None:
    """Killed at 14.5, when the steps done at 13 and 14 were not saved; the step after the one done
    at 12 is done again at 18: five steps of a second in eight."""
    run = course(10.0, 11.0, 12.0, 18.0, 19.0)
    assert run.paced(1.0, run.done_s[-1]) == pytest.approx(4 * 1.0 / 9.0)
    assert run.paced(1.0, run.done_s[0] + 20.0) == pytest.approx(4 * 1.0 / 20.0), "it hung on"
    (loss,) = run.losses([14.5])
    assert (loss.step, loss.work_s, loss.back_s) == (3, 2.5, 2.5)


def test_a_kill_after_the_last_step_is_no_loss() -> None:
    assert course(10.0, 11.0, 12.0).losses([12.5]) == []


def test_lines_that_are_not_one_a_step_are_refused() -> None:
    with pytest.raises(ValueError, match="a line for each step"):
        Course.of([{"step": 1, "time_s": 0.0}, {"step": 3, "time_s": 1.0}])


def test_a_save_costs_what_the_steps_after_it_take_longer() -> None:
    """Of 130 steps of a second, the two after steps 40 and 80 take 1.5 and 1.25 seconds; something
    else held up a step after step 120."""
    gaps = [1.0] * 130
    for saved in (40, 80, 120):
        gaps[saved], gaps[saved + 1] = 1.5, 1.25
    gaps[122] = 9.0
    done_s, now_s = [], 0.0
    for gap in gaps:
        now_s += gap
        done_s.append(now_s)
    assert course(*done_s).save_stall_s(40) == pytest.approx(0.75)


def test_youngs_interval() -> None:
    """sqrt(2 x 0.3 x 60) = 6 seconds."""
    assert best_interval(step_s=0.5, save_s=0.3, mean_time_between_failures_s=60) == 12
    assert best_interval(step_s=0.5, save_s=0.0, mean_time_between_failures_s=60) == 1


def test_what_failures_and_saves_took_is_not_effective() -> None:
    # 20 steps of 1 s; a failure at 10.5 s makes the eleventh 5 s and the next one 1.5 s; then the
    # machine is slower, 2 s a step for 30 steps.
    gaps = [1.0] * 10 + [5.0, 1.5] + [1.0] * 8 + [2.0] * 30
    done_s = [0.0]
    for gap in gaps:
        done_s.append(done_s[-1] + gap)
    run = Course(0, tuple(done_s))
    total_s = 10 + 6.5 + 8 + 60
    assert run.effective([10.5], saves_s=0.0, ended_s=total_s) == pytest.approx(1 - 4.5 / total_s)
    assert run.effective([10.5], saves_s=2.0, ended_s=total_s) == pytest.approx(1 - 6.5 / total_s)
    hung = run.effective([10.5, total_s + 1], saves_s=0.0, ended_s=total_s + 10)
    assert hung == pytest.approx(1 - 14.5 / (total_s + 10)), "no step after the last failure"
