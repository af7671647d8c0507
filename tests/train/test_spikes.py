"""Steps that stand out are left out, all ranks alike, and nothing of them stays."""

from __future__ import annotations

import json
import math
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hecate.train.spikes import GuardConfig, SpikeGuard, Verdict, threshold

SKIP = GuardConfig(action="skip", window=5, warmup=3, deviations=2.0)


def guard(*losses: float, config: GuardConfig = SKIP) -> SpikeGuard:
    """A guard that has taken steps of these losses, with a gradient norm of 1."""
    made = SpikeGuard(config)
    for loss in losses:
        assert made.judge(loss=loss, norm=1.0).take
    return made


def test_the_threshold_by_hand():
    """Median 4, distances 3 2 0 2 6: their median is 2, so 4 + 2 * 1.4826 * 2."""
    assert threshold(deque([1, 2, 4, 6, 10]), 2.0) == pytest.approx(4 + 2 * 1.4826 * 2)


def test_a_run_without_noise_leaves_one_hundredth_of_the_median_for_each_deviation():
    made = guard(4.0, 4.0, 4.0)
    assert made.judge(loss=4.08, norm=1.0).take
    assert not made.judge(loss=4.09, norm=1.0).take


def test_a_loss_above_the_threshold_is_left_out_and_said():
    made = guard()
    made.restore({"losses": [1.0, 2.0, 4.0, 6.0, 10.0], "norms": [1.0] * 5})
    verdict = made.judge(loss=9.94, norm=1.0)
    assert (verdict.take, verdict.rewind, verdict.stop) == (False, False, False)
    assert verdict.reason == "loss 9.94 above 9.93"
    assert made.judge(loss=9.93, norm=1.0).take
    assert made.skipped == 1


def test_a_gradient_norm_is_judged_by_its_own_past():
    made = guard(1.0, 1.0, 1.0)
    assert made.judge(loss=1.0, norm=1.5).reason == "gradient norm 1.5 above 1.02"


def test_falling_losses_and_norms_are_always_taken():
    made = guard(5.0, 5.0, 5.0, 1.0)
    assert made.judge(loss=0.1, norm=0.001).take


def test_nothing_is_a_spike_before_the_warm_up():
    assert guard(1.0, 1.0).judge(loss=1e9, norm=1e9).take


def test_steps_left_out_do_not_raise_the_threshold():
    made = guard(1.0, 1.0, 1.0)
    for _ in range(20):
        assert not made.judge(loss=50.0, norm=1.0).take
    assert made.skipped == 20


def test_only_the_window_counts():
    made = guard(1.0, 1.0, 1.0, config=GuardConfig(action="skip", window=3, warmup=3, deviations=1))
    for loss in (1.005, 1.01, 1.015, 1.02, 1.025, 1.03):
        assert made.judge(loss=loss, norm=1.0).take
    assert made.state()["losses"] == [1.02, 1.025, 1.03]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_left_out_from_the_first_step(bad: float):
    assert SpikeGuard(SKIP).judge(loss=bad, norm=1.0).reason == f"loss {bad}"
    assert SpikeGuard(SKIP).judge(loss=1.0, norm=bad).reason == f"gradient norm {bad}"


def test_by_default_only_what_is_not_finite_ends_the_run():
    made = guard(*[1.0] * 50, 1e9, config=GuardConfig())
    assert made.judge(loss=math.nan, norm=1.0) == Verdict(False, False, True, "loss nan")


def test_steps_left_out_in_a_row_go_back_and_at_last_end_the_run():
    config = SKIP.model_copy(update={"rewind_after": 2, "rewinds": 2})
    made = guard(1.0, 1.0, 1.0, config=config)
    seen = [made.judge(loss=9.0, norm=1.0) for _ in range(6)]
    assert [verdict.rewind for verdict in seen] == [False, True, False, True, False, False]
    assert [verdict.stop for verdict in seen] == [False] * 5 + [True]


def test_a_step_that_is_taken_breaks_the_row():
    config = SKIP.model_copy(update={"rewind_after": 2})
    made = guard(1.0, 1.0, 1.0, config=config)
    for _ in range(4):
        assert not made.judge(loss=9.0, norm=1.0).rewind
        assert made.judge(loss=1.0, norm=1.0).take


@given(
    st.lists(st.floats(0.1, 100) | st.just(math.nan), min_size=1, max_size=60), st.integers(0, 60)
)
def test_a_guard_from_a_checkpoint_judges_as_the_one_that_was_saved(losses, saved_at):
    config = SKIP.model_copy(update={"rewind_after": 3})
    straight, resumed = SpikeGuard(config), SpikeGuard(config)
    for number, loss in enumerate(losses):
        if number == saved_at:
            state = json.loads(json.dumps(straight.state()))
            resumed = SpikeGuard(config)
            resumed.restore(state)
        expected = straight.judge(loss=loss, norm=loss)
        assert resumed.judge(loss=loss, norm=loss) == expected


def test_a_checkpoint_without_a_guard_starts_one_anew():
    made = guard(1.0, 1.0, 1.0)
    made.restore({})
    assert made.state() == SpikeGuard(SKIP).state()
