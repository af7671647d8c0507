"""What tokens cost, and when it is."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.steady import Steady
from serving.scheduling.applications.traces import Call


def test_work_counts_what_is_computed_and_a_call_alone_takes_its_pace() -> None:
    rates = Rates(prefill_token_s=1.0, decode_token_s=10.0, pace_s=100.0)
    call = Call(prompt_tokens=7, output_tokens=2, cached_tokens=4)
    assert rates.work_s(call) == 3 + 20 and rates.alone_s(call) == 3 + 200


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_a_steady_clock_never_runs_back_and_leaps_no_gap(readings: list[float]) -> None:
    clock = Steady(60.0)
    shown = [clock.at(reading) for reading in readings]
    steps = np.diff([0.0, *shown])
    assert (steps >= 0).all() and (steps <= 60.0 + 1e-6).all()


def test_a_steady_clock_keeps_time() -> None:
    clock = Steady(60.0)
    assert [clock.at(at) for at in (100.0, 101.5, 90.0, 92.0, 5000.0)] == [0, 1.5, 1.5, 3.5, 63.5]
