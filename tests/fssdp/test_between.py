"""Seconds between two layers of experts, with modules that sleep."""

from __future__ import annotations

import time

import torch
from torch import nn

from hecate.fssdp.between import seconds_between


class Sleeps(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return x


def test_what_lies_between_is_timed_and_nothing_else():
    experts = [Sleeps(0.2), Sleeps(0.2), Sleeps(0.2)]
    dense = [Sleeps(0.5), Sleeps(0.02), Sleeps(0.02), Sleeps(0.5)]
    model = nn.Sequential(
        *(m for pair in zip(dense, experts, strict=False) for m in pair), dense[3]
    )
    found = seconds_between(experts, lambda: model(torch.zeros(1)), torch.device("cpu"))
    assert 0.02 <= found < 0.2
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in experts)


def test_from_the_first_block_after_the_experts_where_there_are_blocks():
    """What a block computes behind its experts, such as shared ones, hides no gather."""
    experts, shared = [Sleeps(0.1), Sleeps(0.1)], Sleeps(0.3)
    blocks = [
        nn.Sequential(Sleeps(0), experts[0], shared),
        nn.Sequential(Sleeps(0.02)),
        nn.Sequential(Sleeps(0.02), experts[1]),
    ]
    model = nn.Sequential(*blocks)
    found = seconds_between(
        experts, lambda: model(torch.zeros(1)), torch.device("cpu"), blocks=blocks
    )
    assert 0.04 <= found < 0.3
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in blocks)


def test_a_single_layer_has_nothing_between():
    assert seconds_between([Sleeps(0)], lambda: None, torch.device("cpu")) == 0
