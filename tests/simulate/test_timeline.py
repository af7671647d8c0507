"""The engine against timelines worked out by hand."""

import numpy as np
import pytest

from hecate.simulate.timeline import Timeline, Work


def test_ranks_meet_at_a_transfer() -> None:
    timeline = Timeline(2)
    timeline.compute("attention", np.array([3.0, 1.0]))
    timeline.wait(timeline.issue("exchange", "tokens", Work(0.5, inside_s=2.0, across_s=1.0)))
    # issued by the last rank at 3, launched until 3.5, drained at 5.5
    assert timeline.clock_W.tolist() == [5.5, 5.5]
    assert timeline.charged_s == {"attention": 2.0, "straggler": 1.0, "exchange": 2.5}


def test_a_transfer_behind_compute_costs_nothing() -> None:
    timeline = Timeline(2)
    gather = timeline.issue("gather", "copies", Work(1.0, inside_s=3.0))
    timeline.compute("attention", 5.0)
    timeline.wait(gather)
    assert timeline.end_s == 5.0
    assert timeline.charged_s["gather"] == 0.0


def test_what_compute_does_not_hide_is_exposed() -> None:
    timeline = Timeline(2)
    gather = timeline.issue("gather", "copies", Work(1.0, inside_s=3.0))
    timeline.compute("attention", 2.5)
    timeline.wait(gather)
    assert timeline.end_s == 4.0
    assert timeline.charged_s["gather"] == 1.5


def test_two_streams_share_a_link() -> None:
    timeline = Timeline(1)
    first = timeline.issue("gather", "copies", Work(0.0, across_s=4.0))
    timeline.compute("attention", 2.0)
    second = timeline.issue("exchange", "tokens", Work(0.0, across_s=1.0))
    timeline.wait(second)
    # from 2 on each has half of the link: the second needs 2 s, the first has 1 s left at 4
    assert timeline.end_s == 4.0
    timeline.wait(first)
    assert timeline.end_s == 5.0


def test_different_links_do_not_disturb_each_other() -> None:
    timeline = Timeline(1)
    first = timeline.issue("gather", "copies", Work(0.0, inside_s=4.0))
    second = timeline.issue("exchange", "tokens", Work(0.0, across_s=3.0))
    timeline.wait(second)
    assert timeline.end_s == 3.0
    timeline.wait(first)
    assert timeline.end_s == 4.0


def test_one_stream_takes_one_transfer_after_the_other() -> None:
    timeline = Timeline(1)
    first = timeline.issue("a", "copies", Work(0.5, inside_s=1.0))
    second = timeline.issue("b", "copies", Work(0.5, inside_s=1.0))
    timeline.wait(second)
    assert (first.started_s, first.ended_s) == (0.0, 1.5)
    assert (second.started_s, second.ended_s) == (1.5, 3.0)


def test_a_launch_does_not_take_part_in_sharing() -> None:
    timeline = Timeline(1)
    first = timeline.issue("a", "copies", Work(0.0, inside_s=2.0))
    second = timeline.issue("b", "tokens", Work(1.0, inside_s=1.0))
    timeline.wait(second)
    # alone until 1, then shared: 1 s of work each, done at 3
    assert timeline.end_s == 3.0
    assert first.ended_s == 3.0


def test_transfers_that_steal() -> None:
    timeline = Timeline(2, steal=0.5)
    gather = timeline.issue("gather", "copies", Work(1.0, inside_s=2.0))
    timeline.compute("attention", np.array([1.5, 4.0]))
    # until 1 nothing is stolen; from 1 to 3 half: rank 0 does its last 0.5 in 1 s, and rank 1 has
    # done 2 of 4 at 3
    assert timeline.clock_W.tolist() == [2.0, 5.0]
    timeline.wait(gather)
    assert timeline.clock_W.tolist() == [3.0, 5.0]


def test_waiting_for_a_transfer_steals_nothing() -> None:
    timeline = Timeline(1, steal=0.9)
    timeline.wait(timeline.issue("exchange", "tokens", Work(0.0, inside_s=2.0)))
    timeline.compute("experts", 1.0)
    assert timeline.end_s == pytest.approx(3.0)


@pytest.mark.parametrize("steal", [0.0, 0.3])
def test_charges_add_up_and_repeat(steal: float) -> None:
    def run() -> Timeline:
        rng = np.random.default_rng(0)
        timeline = Timeline(3, steal=steal)
        behind = None
        for _ in range(20):
            ahead = timeline.issue("gather", "copies", Work(*rng.random(3)))
            timeline.compute("attention", rng.random(3))
            timeline.wait(timeline.issue("exchange", "tokens", Work(*rng.random(3))))
            if behind is not None:
                timeline.wait(behind)
            timeline.compute("experts", rng.random(3))
            behind = ahead
        return timeline

    first, second = run(), run()
    assert sum(first.charged_s.values()) == pytest.approx(float(first.clock_W.mean()))
    assert first.clock_W.tolist() == second.clock_W.tolist()
    assert first.spans == second.spans


def test_a_transfer_of_nothing_ends_at_once() -> None:
    timeline = Timeline(2)
    timeline.compute("before", 3.0)
    timeline.wait(timeline.issue("nothing", "a", Work(0.0)))
    assert timeline.end_s == 3.0
