"""How a cold adapter is loaded, and where a request goes: by numbers worked out by hand."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from serving.lora.cold import ASSIST, PIPELINE, WAIT, ColdCosts, Line
from serving.lora.placement import (
    AdapterHome,
    FirstFit,
    LeastLoaded,
    Random,
    RankAware,
    ReplicaState,
    Wanted,
)
from serving.lora.step_model import StepModel, fit


def test_ways_of_a_cold_start() -> None:
    """4 layers of 1 s a token each and 8 s to load: 12; the last layer comes at 8, and takes 1."""
    costs = ColdCosts(8.0, layer=Line(0.0, 1.0, small=0), host=Line(0.25, 0.0, small=1e9))
    found = costs.estimates(1, 8, 4, 2, assisted=True)
    assert found == {WAIT: 12.0, PIPELINE: 9.0, ASSIST: 6.0}  # 4 layers of 1 + 2 * 0.25
    assert costs.choose(1, 8, 4, 2, assisted=True) == ASSIST
    assert costs.choose(1, 8, 4, 2, assisted=False) == PIPELINE
    queued = costs.estimates(1, 8, 4, 2, assisted=True, before=2)
    assert queued == {WAIT: 28.0, PIPELINE: 25.0, ASSIST: 6.0}


def test_a_long_prompt_waits_for_layers_rather_than_for_the_host() -> None:
    """32 tokens of rank 64: the host takes 20.48 s a projection; a layer is there after 2."""
    costs = ColdCosts(8.0, layer=Line(0.0, 0.01, small=0), host=Line(0.0, 0.01, small=0))
    assert costs.choose(32, 64, 4, 1, assisted=True) == PIPELINE
    assert costs.choose(1, 8, 4, 1, assisted=True) == ASSIST
    costs.loaded(3.0)
    assert costs.load_s == pytest.approx(7.0)


def test_a_step_of_few_tokens_tells_what_a_step_costs_at_all() -> None:
    """And one of many what each token does: else decoding would count as slow prefill."""
    line = Line(0.0, 0.0, small=4)
    for _ in range(60):
        line.measured(1, 1.5)
        line.measured(64, 1.0 + 0.5 * 64)
    assert line(1) == pytest.approx(1.5, rel=1e-3)
    assert line(100) == pytest.approx(51.0, rel=2e-2)
    line.measured(64, 0.0)
    assert 0.0 < line(100) < 51.0


def test_a_pipelined_prompt_begins_late_and_ends_as_soon() -> None:
    """Layers come every 2 s; each takes the model 1 s: begun at once or when 2 are there, at 4, the
    prompt ends at 9, a second after the last one has come."""
    costs = ColdCosts(8.0, layer=Line(0.0, 1.0, small=0))
    assert costs.ahead(1, 4) == 2

    def through(layer_s: float, begun_s: float) -> tuple[float, float]:
        now_s, waited_s = begun_s, 0.0
        for number in range(4):
            waited_s += max(0.0, 2.0 * (number + 1) - now_s)
            now_s = max(now_s, 2.0 * (number + 1)) + layer_s
        return now_s, waited_s

    for tenths in range(1, 40):
        costs.layer = Line(0.0, tenths / 10, small=0)
        end_s, waited_s = through(tenths / 10, 2.0 * costs.ahead(1, 4))
        assert end_s == pytest.approx(through(tenths / 10, 0.0)[0])
        assert waited_s < 2.0


MODEL = StepModel(
    decode_base_s=1.0,
    decode_row_s=0.0,
    decode_rank_s=0.01,
    prefill_base_s=0.0,
    prefill_token_s=0.1,
    prefill_token_rank_s=0.0,
    load_base_s=0.0,
    load_rank_s=1.0,
    read_rank_s=0.5,
)


def test_step_models_count_ranks() -> None:
    assert MODEL.decode([8, 64, 0]) == pytest.approx(1.72)
    padded = replace(MODEL, padded=True)
    assert padded.decode([8, 64, 0]) == pytest.approx(1 + 0.01 * 3 * 64)
    assert MODEL.prefill([(10, 8), (20, 0)]) == pytest.approx(3.0)
    assert MODEL.load(8) == pytest.approx(8.0)
    assert MODEL.load(8, on_host=False) == pytest.approx(12.0)
    assert MODEL.decode([]) == MODEL.prefill([]) == 0.0


def test_rank_aware_placement_counts_loads_ranks_and_the_objective() -> None:
    wanted = Wanted("x", 64, prompt_tokens=60, answer_tokens=60.0)
    small = ReplicaState("small", running=(8, 8))
    large = ReplicaState("large", running=(64, 64), resident=frozenset({"x"}))
    policy = RankAware(MODEL, slo_s=3.0)
    # Two others wait 6 s for its prompt, over 60 tokens, and 0.64 s more for each token; itself has
    # a prompt of 6 s and steps of 1 + 0.64 * 3 s, or, beside small ones, loads for 64 s, from disk
    # for 96 s, and has steps of 1 + 0.64 + 0.16 s.
    assert policy.cost(wanted, large).token_s == pytest.approx(2 * 0.74 + 0.1 + 2.92)
    assert policy.cost(wanted, small).token_s == pytest.approx(2 * 0.74 + (96 + 6) / 60 + 1.8)
    near = replace(small, host=frozenset({"x"}))
    assert policy.cost(wanted, near).token_s == pytest.approx(2 * 0.74 + (64 + 6) / 60 + 1.8)
    assert policy.order(wanted, [small, large]) == ["large", "small"]
    assert policy.order(wanted, [near, large]) == ["small", "large"]
    # A third of rank 64 makes it 1 + 0.64 * 3 = 2.92 s; beside the small ones it is 1.8 s.
    strict = RankAware(MODEL, slo_s=1.9)
    assert strict.order(wanted, [small, large]) == ["small", "large"]
    full = ReplicaState("empty but full", most=0)
    assert strict.order(wanted, [full, large]) == ["large", "empty but full"]


def test_an_idle_replica_without_the_adapter_against_a_busy_one_with_it() -> None:
    """To load is for the request alone to wait for; others are slowed where they are many."""
    wanted = Wanted("x", 8, prompt_tokens=10, answer_tokens=10.0)  # 8 s to load
    policy = RankAware(replace(MODEL, read_rank_s=0.0, decode_row_s=0.1), slo_s=100.0)
    idle = ReplicaState("idle")
    home = ReplicaState("home", running=(8,), resident=frozenset({"x"}))
    # home: (1 / 10 + 0.18) for the other, 1 / 10 + 1.36 for itself; idle: 9 / 10 + 1.18.
    assert policy.cost(wanted, home).token_s == pytest.approx(0.28 + 0.1 + 1.36)
    assert policy.cost(wanted, idle).token_s == pytest.approx(0.9 + 1.18)
    assert policy.order(wanted, [idle, home]) == ["home", "idle"]
    three = replace(home, running=(8,) * 3)
    assert policy.cost(wanted, three).token_s == pytest.approx(3 * 0.28 + 0.1 + 1.72)
    assert policy.order(wanted, [idle, three]) == ["idle", "home"]
    # While it is loaded prompts before it are computed, here one of 9 s: 1 s is for its own.
    queue = replace(idle, queued=((90, 0),))
    alone = (1 / 10 + 0.1 + 0.08) + (9 + 1) / 10 + 1.28
    assert policy.cost(wanted, queue).token_s == pytest.approx(alone)
    # Of two that cost the same, the one whose ranks are alike.
    near, far = ReplicaState("z", running=(8, 8)), ReplicaState("a", running=(0, 16))
    assert policy.cost(wanted, near).token_s == policy.cost(wanted, far).token_s
    assert policy.order(wanted, [far, near]) == ["z", "a"]


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
    found = fit(samples)
    assert found.weights == pytest.approx((0.01, 0.002, 1e-5), rel=1e-3)
    assert found.r2 == pytest.approx(1.0)
    assert fit([((1.0, 1.0), 1.0), ((1.0, 2.0), 0.5)]).weights[1] == 0.0  # no row makes it quicker


def test_r2_is_the_share_that_is_explained() -> None:
    """0, 1, 2 and 7 at 1, 2, 3 and 4: the line that fits best is 2.2 x - 3, by hand; without a
    negative base it is 36 / 30 x, which leaves 54 - 36 ** 2 / 30 of 29 around the mean."""
    found = fit([((1.0, x), y) for x, y in ((1.0, 0.0), (2.0, 1.0), (3.0, 2.0), (4.0, 7.0))])
    assert found.weights == pytest.approx((0.0, 36 / 30))
    assert found.r2 == pytest.approx(1 - (54 - 36**2 / 30) / 29)
