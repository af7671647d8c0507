"""The parts of the benchmark of adapters that decide."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from hecate.bench.lora.placed import place
from hecate.bench.lora.workload import Ask, arrivals, brief_prompt, popularity, rank_of
from serving.lora.placement import LeastLoaded, RankAware
from serving.lora.step_model import StepModel


@pytest.mark.parametrize("adapters", [20, 128])
def test_a_tenth_of_the_adapters_gets_most_requests(adapters: int) -> None:
    shares = popularity(adapters)
    assert sum(shares) == pytest.approx(1)
    assert sum(shares[: adapters // 10]) == pytest.approx(0.7, abs=1e-3)
    assert all(a >= b for a, b in pairwise(shares))


def test_arrivals_are_those_that_were_drawn() -> None:
    asks = arrivals(4000, 20.0, [0.7, 0.2, 0.1], random.Random(0).random)
    assert asks[-1].at_s == pytest.approx(200, rel=0.05)
    assert sum(ask.adapter == 0 for ask in asks) / 4000 == pytest.approx(0.7, abs=0.03)
    assert [rank_of(n) for n in range(5)] == [8, 16, 32, 64, 8]


def test_brief_prompts_take_no_longer_than_a_load() -> None:
    assert brief_prompt(0.001, 0.08) == 64
    assert brief_prompt(0.003, 0.08) == 16  # 26.7 tokens
    assert brief_prompt(1e-6, 0.08) == 64
    assert brief_prompt(1.0, 0.08) == 8


MODEL = StepModel(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_simulated_requests_take_their_steps() -> None:
    """Steps of 1 s, answers of 3 tokens: two at once share them, a third waits for a place."""
    asks = [Ask(0.0, 0), Ask(0.5, 1), Ask(0.6, 2)]
    found = place(asks, LeastLoaded(), MODEL, replicas=1, prompt=1, answer=3, most=2, slo_s=1.3)
    # 0 to 3; from 1 to 4, since it waited for the step; from 3 to 6.
    assert found.token_s == pytest.approx((3 + 3.5 + 5.4) / 9)
    assert found.attained == pytest.approx(2 / 3)
    two = place(asks[:2], LeastLoaded(), MODEL, replicas=2, prompt=1, answer=3, most=2, slo_s=1.0)
    assert two.attained == 1.0


def test_rank_aware_placement_keeps_small_ranks_apart_from_large_ones() -> None:
    model = StepModel(1.0, 0.0, 0.02, 0.0, 0.0, 0.0, 0.0, 0.0, padded=True)
    asks = arrivals(300, 0.9, [0.25] * 4, random.Random(0).random)
    setting = {"replicas": 4, "prompt": 1, "answer": 4, "most": 8, "slo_s": 3.0}
    aware = place(asks, RankAware(model, slo_s=3.0), model, **setting)  # type: ignore[arg-type]
    least = place(asks, LeastLoaded(), model, **setting)  # type: ignore[arg-type]
    assert aware.attained > least.attained
