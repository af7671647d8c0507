"""Who goes on after a failure, case by case."""

from __future__ import annotations

from dataclasses import replace

from hecate.train.elastic.roster import Roster

THREE = Roster.of(3, least=2, attempts=3, replaces=True)


def test_a_dead_one_is_replaced() -> None:
    after = THREE.after({1}, saved=0)
    assert after is not None
    assert (after.present, after.failures, after.blamed) == ((0, 1, 2), 1, {1: 1})


def test_a_newer_checkpoint_clears_the_record() -> None:
    after = THREE.after({1}, saved=0)
    assert after is not None
    after = after.after({1}, saved=10)
    assert after is not None
    assert (after.saved, after.failures, after.blamed) == (10, 1, {1: 1})


def test_the_one_that_fails_every_time_is_left_out_until_there_is_a_newer_checkpoint() -> None:
    roster: Roster | None = THREE
    for dead in ({1}, {0, 1}, {1}):
        assert roster is not None
        roster = roster.after(dead, saved=0)
    assert roster is not None
    assert (roster.present, roster.failures, roster.blamed) == ((0, 2), 0, {})
    again = roster.after({2}, saved=5)
    assert again is not None and again.present == (0, 1, 2)


def test_failures_that_nobody_is_to_blame_for_end_the_job() -> None:
    roster: Roster | None = THREE
    for dead in ({0}, {1}, {2}):
        assert roster is not None
        roster = roster.after(dead, saved=0)
    assert roster is None


def test_too_few_end_the_job() -> None:
    strict = replace(THREE, least=3, attempts=1)
    assert strict.after({1}, saved=0) is None


def test_without_replacement_the_others_go_on_alone() -> None:
    roster = Roster.of(3, least=2, attempts=3, replaces=False).after({0}, saved=0)
    assert roster is not None and roster.present == (1, 2)
    later = roster.after(set(), saved=7)
    assert later is not None and later.present == (1, 2)
    assert later.after({2}, saved=7) is None
