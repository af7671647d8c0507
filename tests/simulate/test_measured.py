"""Micro-benchmarks turned into costs and links, and a run from them, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from collectives.placement import Placement
from collectives.topology import Link, Topology
from hecate.planner.costs import StepCosts
from hecate.simulate.measured import HostLinks, Line, Measurements, Rate, Sizes, mean_of
from hecate.simulate.measured_run import simulate_steps
from hecate.simulate.strategies import STRATEGIES, Strategy
from hecate.simulate.timeline import Work

FREE = Rate(0.0, 0.0, 0.0)
SIZES = Sizes(layers=2, experts=4, hidden_size=8, expert_parameters=10, dense_parameters=6, ranks=2)
# two bytes a second each way would be too slow for any copy to pay
MEASURED = Measurements(
    layer_forward_s=10.0,
    layer_backward_s=20.0,
    ends_s=5.0,
    dense_optimizer_s=1.0,
    expert_optimizer_s=0.5,
    dispatch_forward_s=1.0,
    dispatch_backward_s=3.0,
    arrange_s=0.25,
    expert_forward=Line(1.0, 0.75),
    expert_backward=Line(2.0, 1.75),
    counts_s=0.5,
    tokens=Rate(1.0, 0.125, 0.125),
    gathers=FREE,
    reductions=FREE,
    steal=0.0,
    reckoned=StepCosts(slot_s=3.0, gather_bytes=40, reduce_bytes=40),
    topology=Topology.single_node(2, Link(2.0, 0.0)),
)


def test_a_line_goes_through_both_points_and_is_never_negative() -> None:
    line = Line.through((10, 7.0), (30, 11.0))
    assert (line.fixed_s, line.each_s) == (5.0, pytest.approx(0.2))
    assert line.seconds(20) == pytest.approx(9.0)
    assert Line.through((10, 2.0), (30, 9.0)).fixed_s == 0.0
    assert Line.through((10, 7.0), (30, 6.0)) == Line(7.0, 0.0)


def test_what_a_core_sends_adds_up_with_what_it_receives() -> None:
    rate = Rate.through(100, launch_s=1.0, one_way_s=3.0, both_s=4.0)
    assert rate == Rate(1.0, 0.02, 0.01)
    rows_WW = np.array([[50, 3], [7, 60]])
    # 7 rows of 10 bytes the busier way, 3 the other
    assert rate.work(rows_WW, 10, launches=2) == Work(2.0, 70 * 0.02 + 30 * 0.01)


def test_links_count_copies_and_leave_out_what_stays() -> None:
    links = HostLinks(MEASURED.tokens, Rate(1.0, 0.5, 0.25), Rate(2.0, 1.0, 1.0))
    assert links.exchange(np.diag([4, 4]), 8) == Work(0.0)
    owners = Placement.from_owners([0, 0, 1], 2)
    both = Placement(((0, 1), (0, 1), (0, 1)), 2)
    assert links.copies(owners, both, 4) == Work(1.0, 4 * (2 * 0.5 + 1 * 0.25))
    assert links.reduction(owners, both, 4) == Work(2.0, 4 * 3 * 1.0)
    assert links.copies(owners, owners, 4) is None


def run(strategy: Strategy, counts_E: list[int], measured: Measurements = MEASURED) -> float:
    counts_SYE = np.tile(np.array(counts_E, dtype=np.int64), (3, 2, 1))
    (step,) = simulate_steps(measured, SIZES, strategy, counts_SYE, [2])
    return step.step_s


def test_a_step_of_expert_parallelism_by_hand() -> None:
    # Each rank sends 2 slots to experts 0 and 1 of rank 0, and 1 to expert 2 of rank 1: rank 0
    # computes 4 slots with two experts, rank 1 2 slots with one; 2 rows of 32 bytes against 1.
    exchange_s = 32 * (2 + 1) * 0.125
    dispatch_s = (1.0 + 3.0) / 2
    forward_s = 10 + 0.5 + dispatch_s + (2 + exchange_s) + (2 * 1 + 4 * 1) + (1 + exchange_s)
    backward_s = dispatch_s + (1 + exchange_s) + (2 * 2 + 4 * 2) + (2 + exchange_s) + 20
    update_s = 6 / 2 * 1.0 + 4 * 2 / 2 * 10 * 0.5
    expected = 2 * (forward_s + backward_s) + 5 + update_s
    assert run(STRATEGIES["expert_parallel"], [1, 1, 1, 0]) == pytest.approx(expected)


def test_even_choices_are_the_ceiling() -> None:
    hot = [2, 2, 0, 0]
    even_s = run(STRATEGIES["force_balanced"], hot)
    assert even_s < run(STRATEGIES["expert_parallel"], hot)
    assert even_s == run(STRATEGIES["expert_parallel"], [1, 1, 1, 1])


def test_copies_are_made_where_the_planner_reckons_that_they_pay() -> None:
    hot, strategy = [4, 0, 0, 0], STRATEGIES["fssdp"]
    fast = replace(MEASURED, topology=Topology.single_node(2, Link(1e6, 0.0)))
    assert run(strategy, hot) == run(STRATEGIES["expert_parallel"], hot)
    assert run(strategy, hot, fast) < run(strategy, hot)


def test_what_was_measured_twice_counts_by_its_mean() -> None:
    other = replace(
        MEASURED, ends_s=9.0, tokens=Rate(0.5, 0.5, 0.0), expert_forward=Line(3.0, 0.25)
    )
    mean = mean_of([MEASURED, other])
    assert mean.ends_s == 7.0 and mean.layer_forward_s == 10.0
    assert mean.tokens == Rate(0.75, 0.3125, 0.0625)
    assert mean.expert_forward == Line(2.0, 0.5)
    assert mean.reckoned == MEASURED.reckoned
