"""How a cold adapter is loaded, and where a request goes: by numbers worked out by hand."""

from __future__ import annotations

import random

import pytest

from serving.lora.cold import ASSIST, PIPELINE, WAIT, ColdCosts
from serving.lora.placement import (
    AdapterHome,
    FirstFit,
    LeastLoaded,
    Random,
    RankAware,
    ReplicaState,
    StepModel,
    Wanted,
    fit,
)


def test_ways_of_a_cold_start() -> None:
    """4 layers of 1 s a token each and 8 s to load: 12; the last layer comes at 8, and takes 1."""
    costs = ColdCosts(load_s=8.0, layer_token_s=1.0, call_s=0.25, call_row_rank_s=0.0)
    found = costs.estimates(1, 8, 4, 2, assisted=True)
    assert found == {WAIT: 12.0, PIPELINE: 9.0, ASSIST: 6.0}  # 4 layers of 1 + 2 * 0.25
    assert costs.choose(1, 8, 4, 2, assisted=True) == ASSIST
    assert costs.choose(1, 8, 4, 2, assisted=False) == PIPELINE


def test_a_long_prompt_waits_for_layers_rather_than_for_the_host() -> None:
    """32 tokens of rank 64: the host takes 20.48 s a projection; a layer is there after 2."""
    costs = ColdCosts(load_s=8.0, layer_token_s=0.01, call_s=0.0, call_row_rank_s=0.01)
    assert costs.choose(32, 64, 4, 1, assisted=True) == PIPELINE
    assert costs.choose(1, 8, 4, 1, assisted=True) == ASSIST
    costs.loaded(3.0)
    assert costs.load_s == pytest.approx(7.0)
    costs.stepped(8.0, tokens=10, layers=4)
    assert costs.layer_token_s == pytest.approx(0.01 + 0.2 * (0.2 - 0.01))


MODEL = StepModel(
    decode_base_s=1.0,
    decode_row_s=0.0,
    decode_rank_s=0.01,
    prefill_base_s=0.0,
    prefill_token_s=0.1,
    prefill_token_rank_s=0.0,
    load_rank_s=1.0,
)


def test_step_models_count_ranks() -> None:
    assert MODEL.decode([8, 64, 0]) == pytest.approx(1.72)
    padded = StepModel(*[1.0, 0.0, 0.01, 0.0, 0.1, 0.0, 1.0], padded=True)
    assert padded.decode([8, 64, 0]) == pytest.approx(1 + 0.01 * 3 * 64)
    assert MODEL.prefill([(10, 8), (20, 0)]) == pytest.approx(3.0)


def test_rank_aware_placement_counts_loads_ranks_and_the_objective() -> None:
    wanted = Wanted("x", 64, prompt_tokens=60, answer_tokens=60.0)
    small = ReplicaState("small", running=(8, 8))
    large = ReplicaState("large", running=(64, 64), resident=frozenset({"x"}))
    policy = RankAware(MODEL, slo_s=3.0)
    # large: (0.1 + 0.64) * 2; small: (0.1 + 64 / 60 + 0.64) * 2; both are within 3 s.
    assert policy.cost(wanted, large)[2] == pytest.approx(1.48)
    assert policy.cost(wanted, small)[2] == pytest.approx((0.74 + 64 / 60) * 2)
    assert policy.order(wanted, [small, large]) == ["large", "small"]
    # A third of rank 64 makes it 1 + 0.64 * 3 = 2.92 s; beside the small ones it is 1.8 s.
    strict = RankAware(MODEL, slo_s=1.9)
    assert strict.order(wanted, [small, large]) == ["small", "large"]
    full = ReplicaState("empty but full", most=0)
    assert strict.order(wanted, [full, large]) == ["large", "empty but full"]


def test_baselines() -> None:
    wanted = Wanted("x", 8, 10)
    one = ReplicaState("one", running=(8,))
    two = ReplicaState("two", running=(8, 8), resident=frozenset({"x"}))
    full = ReplicaState("full", running=(8, 8, 8), most=3)
    assert FirstFit().order(wanted, [one, two, full]) == ["two", "one", "full"]
    assert LeastLoaded().order(wanted, [full, two, one]) == ["one", "two", "full"]
    assert AdapterHome().order(wanted, [one, two, full]) == ["two", "one", "full"]
    busy = ReplicaState("busy", running=(8,) * 9, resident=frozenset({"x"}))
    assert AdapterHome().order(wanted, [one, busy]) == ["busy", "one"]
    assert AdapterHome(slack=1.5).order(wanted, [one, busy]) == ["one", "busy"]
    shuffles = [random.Random(seed).shuffle for seed in range(9)]
    draws = {tuple(Random(shuffle).order(wanted, [one, two])) for shuffle in shuffles}
    assert len(draws) == 2


def test_the_fit_finds_the_weights_that_made_the_samples() -> None:
    samples = [
        ((1.0, float(rows), float(ranks)), 0.01 + 0.002 * rows + 1e-5 * ranks)
        for rows in (1, 4, 16, 64)
        for ranks in (0, 8 * rows, 64 * rows)
    ]
    assert fit(samples) == pytest.approx((0.01, 0.002, 1e-5), rel=1e-3)
    assert fit([((1.0, 1.0), 1.0), ((1.0, 2.0), 0.5)])[1] == 0.0  # nothing gets quicker with rows
