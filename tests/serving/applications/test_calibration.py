"""Costs of tokens are found again in what engines tell."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from serving.applications.calibration import Calibration
from serving.engine.protocol import EngineLoad
from serving.scheduling.applications.demand import Rates

IDLE = EngineLoad(*[0] * 12)


def after(load: EngineLoad, prompt: int, generated: int, seconds: float) -> EngineLoad:
    return replace(
        load,
        steps_total=load.steps_total + max(1, generated // 8),
        prompt_tokens_total=load.prompt_tokens_total + prompt,
        generated_tokens_total=load.generated_tokens_total + generated,
        busy_s_total=load.busy_s_total + seconds,
    )


@pytest.mark.parametrize(("prefill_s", "decode_s"), [(2e-4, 5e-3), (1e-5, 1e-4), (3e-3, 0.1)])
def test_costs_are_found_and_followed(prefill_s: float, decode_s: float) -> None:
    draw = random.Random(1)
    calibration, load = Calibration(Rates()), IDLE
    for factor in (1.0, 3.0):  # others come to the machine
        for _ in range(400):
            prompt, generated = draw.choice((0, 0, 100, 700)), draw.randint(8, 80)
            seconds = factor * (prefill_s * prompt + decode_s * generated)
            load = after(load, prompt, generated, seconds * draw.uniform(0.9, 1.1))
            calibration.look([("a", load)])
        rates = calibration.rates
        assert rates.prefill_token_s == pytest.approx(factor * prefill_s, rel=0.15)
        assert rates.decode_token_s == pytest.approx(factor * decode_s, rel=0.15)


def test_one_proportion_says_nothing_of_either() -> None:
    calibration, load = Calibration(Rates(1e-4, 2e-3)), IDLE
    for _ in range(200):
        load = after(load, 100, 10, 2 * (100 * 1e-4 + 10 * 2e-3))
        calibration.look([("a", load)])
    rates = calibration.rates
    assert 100 * rates.prefill_token_s + 10 * rates.decode_token_s == pytest.approx(0.06, rel=0.1)
    assert rates.prefill_token_s > 0 < rates.decode_token_s


def test_an_engine_that_tells_nothing_or_begins_anew_changes_nothing() -> None:
    calibration = Calibration(Rates())
    before = calibration.rates
    calibration.look([("a", after(IDLE, 100, 10, 5.0))])  # all at once, before the first look
    calibration.look([("a", after(IDLE, 50, 5, 1.0))])
    calibration.look([("a", after(IDLE, 90, 50, 1.0))])  # no seconds
    calibration.look([])
    calibration.look([("a", after(IDLE, 900, 50, 9.0))])
    assert calibration.rates == before
