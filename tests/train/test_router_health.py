"""How tokens spread over experts, by hand; parity.py compares real steps at every layout."""

from __future__ import annotations

import math

import pytest
import torch

from hecate.train.router_health import RouterTally, routing_entropy


def test_entropy_by_hand():
    assert routing_entropy([5, 5, 5, 5]) == pytest.approx(1.0)
    assert routing_entropy([0, 7, 0]) == 0.0
    assert routing_entropy([3, 3, 0, 0]) == pytest.approx(0.5)  # 1 of 2 bits
    halves = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert routing_entropy([2, 1, 1]) == pytest.approx(halves / math.log(3))


def test_entropy_without_tokens_or_with_one_expert():
    assert routing_entropy([0, 0]) == 0.0
    assert routing_entropy([4]) == 1.0


def test_an_expert_is_dead_if_no_step_since_the_last_line_chose_it():
    tally = RouterTally((3, 2))
    tally.add(torch.tensor([[4, 0, 0], [2, 2, 0]]))
    tally.add(torch.tensor([[0, 4, 0], [4, 0, 0]]))
    figures = tally.figures()
    assert figures["router/dead_experts"] == [1.0, 0.0]
    assert figures["router/entropy"] == [
        pytest.approx(math.log(2) / math.log(3)),
        routing_entropy([6, 2]),
    ]


def test_adding_does_not_change_what_was_added():
    tally, counts = RouterTally((2,)), torch.tensor([[1, 1]])
    tally.add(counts)
    tally.add(counts)
    assert counts.tolist() == [[1, 1]]
