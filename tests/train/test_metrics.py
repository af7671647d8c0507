"""Figures computed from counts and times."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from toy_models import FAMILIES, meta_model, toy_config, toy_model

from collectives.placement import Placement
from hecate.models.families import find_moe_layers
from hecate.train.metrics import (
    PHASES,
    PhaseClock,
    attended_keys,
    bits_per_byte,
    load_statistics,
    mfu,
    model_flops,
    perplexity,
)


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices():
    assert perplexity(math.log(4096)) == pytest.approx(4096)
    assert perplexity(1e4) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight():
    assert bits_per_byte(math.log(256), predicted_tokens=70, text_bytes=70) == pytest.approx(8)
    assert bits_per_byte(math.log(256), predicted_tokens=70, text_bytes=280) == pytest.approx(2)
    with pytest.raises(ValueError, match="0 bytes"):
        bits_per_byte(1.0, predicted_tokens=1, text_bytes=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_s_flops_are_what_torch_counts(family):
    """torch counts whole score matrices and the forward pass; norms and biases are the slack."""
    model = toy_model(family, attn_implementation="eager", experts_implementation="eager")
    flops = model_flops(model, find_moe_layers(model))
    tokens = 32
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.arange(tokens)[None], use_cache=False)
    top_k = 2
    expected = flops.of(
        tokens=tokens,
        assignments_Y=[tokens * top_k] * len(flops.expert_parameters),
        attended_keys=tokens * tokens,
    )
    assert expected / 3 == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_a_tied_embedding_is_counted_once_and_an_untied_one_not_at_all():
    def dense(tied: bool) -> int:
        model = meta_model(toy_config("qwen3_moe", tie_word_embeddings=tied))
        model.tie_weights()
        return model_flops(model, find_moe_layers(model)).dense_parameters

    assert dense(True) == dense(False)


def test_experts_count_as_often_as_they_ran():
    flops = model_flops(meta := meta_model(toy_config("mixtral")), find_moe_layers(meta))
    one = flops.of(tokens=10, assignments_Y=[10, 10], attended_keys=0)
    two = flops.of(tokens=10, assignments_Y=[20, 20], attended_keys=0)
    assert two - one == 6 * 10 * sum(flops.expert_parameters)
    with pytest.raises(ValueError, match="assignments of 1 layers; expected 2"):
        flops.of(tokens=10, assignments_Y=[10], attended_keys=0)


def test_attended_keys_stop_at_document_borders():
    assert attended_keys([4]) == 1 + 2 + 3 + 4
    assert attended_keys([2, 2]) == 2 * (1 + 2)
    assert attended_keys([]) == 0


def test_mfu_is_the_share_of_the_peak():
    assert mfu(5e9, elapsed_s=2.0, peak_flops=1e10) == pytest.approx(0.25)
    assert mfu(5e9, elapsed_s=0.0, peak_flops=1e10) == 0.0


def test_loads_of_a_skewed_layer():
    counts_YE = torch.tensor([[8, 0, 4, 4], [3, 3, 3, 3]])
    placement = Placement.from_owners([0, 0, 1, 2], 3)
    skewed, even = load_statistics(counts_YE, [placement, placement])
    assert skewed.tokens_per_expert == (8, 0, 4, 4)
    assert skewed.tokens_per_rank == (8, 4, 4)
    assert skewed.experts_max_over_mean == pytest.approx(2.0)
    assert skewed.ranks_max_over_mean == pytest.approx(1.5)
    assert skewed.dead_experts == (1,)
    assert even.experts_max_over_mean == 1.0
    assert even.ranks_max_over_mean == pytest.approx(1.5)
    assert (even.layer, even.dead_experts) == (1, ())


def test_a_rank_without_experts_raises_the_load_of_the_others():
    (load,) = load_statistics(torch.tensor([[5, 5]]), [Placement.from_owners([0, 2], 4)])
    assert load.tokens_per_rank == (5, 0, 5, 0)
    assert load.ranks_max_over_mean == pytest.approx(2.0)


def test_an_expert_on_several_ranks_burdens_each_equally():
    (load,) = load_statistics(torch.tensor([[6, 2]]), [Placement(((0, 1), (1,)), 2)])
    assert load.tokens_per_rank == (3, 5)


def test_no_tokens_at_all_is_balanced_and_every_expert_dead():
    (load,) = load_statistics(torch.zeros(1, 3, dtype=torch.int64), [Placement.even(3, 2)])
    assert load.experts_max_over_mean == load.ranks_max_over_mean == 1.0
    assert load.dead_experts == (0, 1, 2)


def test_a_layer_with_fewer_experts_ignores_the_padding():
    counts_YE = torch.tensor([[1, 1, 0, 0]])
    (load,) = load_statistics(counts_YE, [Placement.even(2, 1)])
    assert load.tokens_per_expert == (1, 1)
    assert load.experts_max_over_mean == 1.0


def test_counts_and_placements_must_agree():
    with pytest.raises(ValueError, match="for 2 placements"):
        load_statistics(torch.zeros(1, 3, dtype=torch.int64), [Placement.even(3, 1)] * 2)


def test_nested_phases_never_count_a_second_twice():
    now = Clock()
    clock = PhaseClock(now)
    with clock.phase("forward"):
        now.now += 1
        with clock.phase("experts"):
            now.now += 2
        clock.add("all_to_all", 0.25)
        now.now += 4
    with clock.phase("forward"):
        now.now += 8
    now.now += 100  # in no phase
    seconds = clock.take()
    assert seconds["forward"] == pytest.approx(1 + 4 - 0.25 + 8)
    assert seconds["experts"] == pytest.approx(2)
    assert seconds["all_to_all"] == pytest.approx(0.25)
    assert sum(seconds.values()) == pytest.approx(15)
    assert set(seconds) == set(PHASES)


def test_take_starts_again_from_zero():
    now = Clock()
    clock = PhaseClock(now)
    clock.add("data", 3.0)
    clock.take()
    assert clock.take() == dict.fromkeys(PHASES, 0.0)


def test_a_phase_that_raises_is_still_charged_and_closed():
    now = Clock()
    clock = PhaseClock(now)
    with pytest.raises(KeyError), clock.phase("backward"):
        now.now += 2
        raise KeyError
    assert clock.take()["backward"] == pytest.approx(2)


def test_an_unknown_phase_is_refused_by_name():
    clock = PhaseClock(Clock())
    with pytest.raises(ValueError, match="unknown phase 'forwards'; expected one of data"):
        clock.add("forwards", 1.0)
    with pytest.raises(ValueError, match="forwards"), clock.phase("forwards"):
        pass
