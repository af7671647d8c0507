"""What tokens cost, learned from steps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.scheduling.applications.demand import Calibration, Rates
from serving.scheduling.applications.steady import Steady
from serving.scheduling.applications.traces import Call


def test_work_counts_what_is_computed_and_a_call_alone_takes_its_pace() -> None:
    rates = Rates(prefill_token_s=1.0, decode_token_s=10.0, pace_s=100.0)
    call = Call(prompt_tokens=7, output_tokens=2, cached_tokens=4)
    assert rates.work_s(call) == 3 + 20 and rates.alone_s(call) == 3 + 200


def test_until_something_is_measured_the_first_rates_hold() -> None:
    first = Rates(1.0, 2.0, 3.0)
    calibration = Calibration(first)
    calibration.step(0, 0, 1.0)
    calibration.step(5, 5, 0.0)
    assert calibration.rates == first


def test_costs_of_both_kinds_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    calibration = Calibration()
    for _ in range(3000):
        prompt = int(rng.integers(100, 800)) if rng.random() < 0.1 else 0
        output = int(rng.integers(1, 64))
        calibration.step(prompt, output, (2e-4 * prompt + 1e-3 * output) * rng.uniform(0.9, 1.1))
    assert calibration.rates.prefill_token_s == pytest.approx(2e-4, rel=0.05)
    assert calibration.rates.decode_token_s == pytest.approx(1e-3, rel=0.05)


def test_tokens_seconds_add_up_to_the_devices() -> None:
    """What a step costs by itself is borne by the tokens in it."""
    rng = np.random.default_rng(1)
    calibration = Calibration(half_life_steps=1e9)
    spent = prompts = outputs = 0.0
    for _ in range(1000):
        prompt, output = int(rng.integers(0, 300)), int(rng.integers(1, 32))
        seconds = 5e-3 + 1e-4 * prompt + 2e-4 * output
        calibration.step(prompt, output, seconds)
        spent, prompts, outputs = spent + seconds, prompts + prompt, outputs + output
    rates = calibration.rates
    told = rates.prefill_token_s * prompts + rates.decode_token_s * outputs
    assert told == pytest.approx(spent)


def test_the_pace_is_the_step_that_an_answers_token_waits_for() -> None:
    calibration = Calibration()
    for _ in range(10):
        calibration.step(0, 30, 0.03)
        calibration.step(500, 10, 0.11)
    assert calibration.rates.pace_s == pytest.approx((0.03 * 30 + 0.11 * 10) / 40, rel=0.01)


def test_a_machine_that_becomes_slower_is_noticed() -> None:
    calibration = Calibration(half_life_steps=100)
    for slow in (1.0, 3.0):
        for _ in range(1000):
            calibration.step(50, 10, slow * (50e-4 + 10e-3))
    rates = calibration.rates
    assert 50 * rates.prefill_token_s + 10 * rates.decode_token_s == pytest.approx(0.045, rel=0.01)


@given(
    st.lists(
        st.tuples(st.integers(0, 5000), st.integers(0, 500), st.floats(1e-6, 1e3)), max_size=50
    )
)
def test_no_steps_make_rates_that_are_none(steps: list[tuple[int, int, float]]) -> None:
    calibration = Calibration()
    for step in steps:
        calibration.step(*step)
    rates = calibration.rates
    for rate in (rates.prefill_token_s, rates.decode_token_s, rates.pace_s):
        assert 0 < rate < float("inf")


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_a_steady_clock_never_runs_back_and_leaps_no_gap(readings: list[float]) -> None:
    clock = Steady(60.0)
    shown = [clock.at(reading) for reading in readings]
    steps = np.diff([0.0, *shown])
    assert (steps >= 0).all() and (steps <= 60.0 + 1e-6).all()


def test_a_steady_clock_keeps_time() -> None:
    clock = Steady(60.0)
    assert [clock.at(at) for at in (100.0, 101.5, 90.0, 92.0, 5000.0)] == [0, 1.5, 1.5, 3.5, 63.5]
