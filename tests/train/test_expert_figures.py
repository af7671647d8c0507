"""What is logged of experts, worked out by hand."""

import logging

import numpy as np
import pytest
import torch

from collectives.placement import Placement
from hecate.fssdp import StepMetrics
from hecate.fssdp.layer_clock import Spent
from hecate.train.expert_figures import (
    ExpertTally,
    SmallExperts,
    experts_mfu,
    seconds_table,
    time_figures,
)

EVEN = Placement.even(4, 2)
COPIED = Placement(((0, 1), (0,), (1,), (1,)), 2)


def step(planned, computed, **counts):
    return StepMetrics(
        step=0,
        owners=(EVEN, EVEN),
        planned=(planned, EVEN),
        held=(planned, EVEN),
        computed=(np.array(computed), np.array([[1, 0], [1, 0], [0, 1], [0, 1]])),
        **{"copies": 0, "gathered_bytes": 0, "reduced_bytes": 0, **counts},
    )


def test_steps_add_up_until_they_are_logged():
    tally = ExpertTally()
    idle = step(COPIED, [[4, 0], [2, 0], [0, 3], [0, 3]], gathered_bytes=10, reduced_bytes=20)
    hot = step(EVEN, [[9, 0], [1, 0], [0, 1], [0, 1]], moved=2)
    for each in (idle, hot, hot):
        tally.add(each)
    assert tally.figures() == {
        "load/idle_copies": [1.0, 0.0],
        "load/missed_experts": [2.0, 0.0],
        "load/moved_experts": 4.0,
        "gather/bytes": 10.0,
        "reduce/bytes": 20.0,
    }


def test_ranks_wait_for_the_one_that_computes_longest():
    first = {
        Spent.EXPERTS: [4.0, 1.0],
        Spent.EXPOSED: [0.5, 0.0],
        Spent.HIDDEN: [1.0, 0.0],
    }
    second = {
        Spent.EXPERTS: [1.0, 1.0],
        Spent.EXPOSED: [0.0, 0.25],
        Spent.HIDDEN: [2.0, 0.0],
    }
    third = {spent: [1.0, 1.0] for spent in Spent}
    tables = torch.stack([seconds_table(of_rank) for of_rank in (first, second)])
    assert time_figures(tables) == {
        "load/straggler_wait_s": [4 - 2.5, 0.0],  # rank 1 waits 3 s, rank 0 not at all
        "gather/exposed_s": [0.25, 0.125],
        "gather/hidden_s": [1.5, 0.0],
    }
    three = torch.stack([seconds_table(of_rank) for of_rank in (first, second, third)])
    assert time_figures(three)["load/straggler_wait_s"] == [2.0, 0.0]


def test_experts_are_measured_against_a_large_product():
    """Two ranks compute experts for 4 s and 2 s, so 3 s on average, of 12 operations in all."""
    busy = [{spent: [0.0, 0.0] for spent in Spent} for _ in range(2)]
    busy[0][Spent.EXPERTS] = [3.0, 1.0]
    busy[1][Spent.EXPERTS] = [1.0, 1.0]
    tables = torch.stack([seconds_table(of_rank) for of_rank in busy])
    assert experts_mfu(tables, 12.0, peak_flops=8.0) == 0.5
    assert experts_mfu(torch.zeros_like(tables), 12.0, peak_flops=8.0) == 0.0


def test_small_experts_are_told_of_once(caplog: pytest.LogCaptureFixture):
    small = SmallExperts()
    with caplog.at_level(logging.WARNING):
        for reached in (0.5, 0.0, 0.04, 0.03):
            small.look(reached, 12.0)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "at 4.0 % of the speed" in said and "12 tokens a step" in said
