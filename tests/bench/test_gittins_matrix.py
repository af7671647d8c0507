"""Small runs of what the benchmark is made of: the same instances for all, and theory met."""

from __future__ import annotations

import numpy as np
import pytest

from hecate.bench.gittins.matrix import POISSON, Setting, try_all
from hecate.bench.gittins.mg1 import check, fcfs_s, priorities_s
from hecate.bench.gittins.run import stage_of, tick_ms_of
from hecate.bench.gittins.steps import StepTimes

POLICIES = ("request_fcfs", "gittins", "least_slack", "oracle")
TIMES = StepTimes(base_s=1e-3, row_s=5e-4, context_s=1e-6, prompt_s=1e-4, pair_s=1e-8)


def test_knowing_more_is_never_much_worse_and_all_meet_the_same_instances() -> None:
    stage = stage_of(TIMES, 0.1, past=40)
    saturation = stage.saturation(40, seed=1)
    settings = [Setting(POISSON, 1.5, 0), Setting("even", 1.5, 0)]
    traces = {"even": [float(second) for second in range(100)]}
    found = try_all(stage, settings, traces, POLICIES, 40, saturation)
    means = {
        (each.setting.arrivals, each.policy): float(np.mean([done.seconds for done in each.done]))
        for each in found
    }
    for arrivals in (POISSON, "even"):
        assert means[arrivals, "gittins"] < means[arrivals, "request_fcfs"]
        assert means[arrivals, "gittins"] < 1.15 * means[arrivals, "oracle"]
    met = {tuple((done.name, done.alone_s, done.deadline) for done in each.done) for each in found}
    assert len(met) == 1
    assert all(done.slowdown > 0.99 for each in found for done in each.done)


def test_a_share_of_the_rate_needs_no_more_sequences_than_it_has_to() -> None:
    assert TIMES.enough(8, 1000, 0.0) == 1
    assert TIMES.enough(8, 1000, 1.0) == 8
    few = TIMES.enough(8, 1000, 0.85)
    whole = TIMES.rates(8, 1000).decode_token_s
    assert 0.85 * TIMES.rates(few, 1000).decode_token_s <= whole
    assert 0.85 * TIMES.rates(few - 1, 1000).decode_token_s > whole


def test_one_server_responds_as_theory_says() -> None:
    found = check(np.random.default_rng(3), 600, 0.5)
    assert found["request_fcfs"].error < 0.01
    assert found["gittins"].error < 0.25
    assert found["gittins"].measured_s < found["request_fcfs"].measured_s


def test_theory_has_the_values_of_known_cases() -> None:
    exponential = np.random.default_rng(0).exponential(10.0, 400_000)
    # M/M/1 at a load of one half: twice the service; and one class alone is first come, first
    # served in the mean.
    assert fcfs_s([exponential], 0.05) == pytest.approx(20.0, rel=0.02)
    assert priorities_s([exponential], 0.05) == pytest.approx(20.0, rel=0.02)


def test_a_tick_is_quick() -> None:
    assert tick_ms_of(stage_of(TIMES, 0.1, past=40), 1000) < 50.0
