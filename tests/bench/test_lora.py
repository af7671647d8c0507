"""The parts of the benchmark of adapters that decide."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from hecate.bench.lora.placed import Fleet, Placed, place
from hecate.bench.lora.workload import Ask, arrivals, brief_prompt, popularity, rank_of
from serving.lora.placement import LeastLoaded, Placement, RankAware
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


def served(
    asks: list[Ask], policy: Placement, model: StepModel, fleet: Fleet, answer: int, slo_s: float
) -> Placed:
    return place(asks, policy, model, fleet, prompt=1, answer=answer, slo_s=slo_s)


def test_simulated_requests_take_their_steps() -> None:
    """Steps of 1 s, answers of 3 tokens: two at once share them, a third waits for a place."""
    asks = [Ask(0.0, 0), Ask(0.5, 1), Ask(0.6, 2)]
    found = served(asks, LeastLoaded(), MODEL, Fleet(1, 2, 4), 3, 1.3)
    # 0 to 3; from 1 to 4, since it waited for the step; from 3 to 6.
    assert found.token_s == pytest.approx((3 + 3.5 + 5.4) / 9)
    assert found.attained == pytest.approx(2 / 3)
    two = served(asks[:2], LeastLoaded(), MODEL, Fleet(2, 2, 4), 3, 1.0)
    assert two.attained == 1.0


def test_simulated_loads_run_one_after_another_beside_the_steps() -> None:
    """A load takes 2 s. Two adapters of rank 64 are in the slots, a third waits for one of them."""
    model = replace(MODEL, load_base_s=2.0)
    large = [3, 7, 11]
    asks = [Ask(0.0, large[0]), Ask(0.0, large[1]), Ask(0.0, large[2]), Ask(0.0, large[0])]
    found = served(asks, LeastLoaded(), model, Fleet(1, 8, 2), 2, 9.0)
    # The first is there at 2: both of its requests end at 4, the second comes at 4 and ends at 6;
    # the third has the first one's slot from 4 on, comes at 6 and ends at 8.
    assert found.token_s == pytest.approx((4 + 6 + 8 + 4) / 8)
    assert found.cold == pytest.approx(3 / 4)
    base = served([Ask(0.0, -1)], LeastLoaded(), model, Fleet(1, 8, 2), 2, 9.0)
    assert (base.token_s, base.cold) == (1.0, 0.0)


def test_rank_aware_placement_keeps_small_ranks_apart_from_large_ones() -> None:
    model = replace(MODEL, decode_rank_s=0.02, padded=True)
    asks = arrivals(300, 0.9, [0.25] * 4, random.Random(0).random)
    fleet = Fleet(4, 8, 16)
    aware = served(asks, RankAware(model, slo_s=3.0), model, fleet, 4, 3.0)
    least = served(asks, LeastLoaded(), model, fleet, 4, 3.0)
    assert aware.attained > least.attained


def test_rank_aware_placement_loads_less_where_loads_are_long() -> None:
    model = replace(MODEL, decode_base_s=0.1, load_base_s=3.0)
    asks = arrivals(400, 4.0, popularity(64), random.Random(0).random)
    fleet = Fleet(4, 8, 4)
    aware = served(asks, RankAware(model, slo_s=1.0), model, fleet, 4, 0.5)
    least = served(asks, LeastLoaded(), model, fleet, 4, 0.5)
    assert aware.cold < 0.7 * least.cold
    assert aware.attained > least.attained + 0.1
