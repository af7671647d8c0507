"""The ranks of many instances at once are those of their tables, one by one."""

import numpy as np
import pytest

from serving.scheduling.applications.gittins import bucketed
from serving.scheduling.applications.live import ClassKey, Live
from serving.scheduling.applications.prospects import NOTHING, Prospect
from serving.scheduling.applications.ranks import Ranks


class Told:
    """Prospects as a test gives them."""

    def __init__(self) -> None:
        self.of: dict[Live, Prospect] = {}

    def prospect(self, live: Live) -> Prospect:
        return self.of[live]


def live(attained_s: float) -> Live:
    return Live(ClassKey("t"), "", 0.0, attained_s=attained_s)


def test_a_tick_gives_what_each_table_does() -> None:
    rng = np.random.default_rng(0)
    told = Told()
    for size in (3, 40, 1000, 50):
        for _ in range(50):
            samples = np.sort(rng.lognormal(2.0, 1.0, size))
            base_s = float(rng.uniform(0, 5))
            told.of[live(base_s + float(rng.uniform(0, samples[-1])))] = Prospect(
                base_s, samples, samples
            )
    ranks = Ranks(told)
    found = ranks.tick(told.of.keys())
    for rank, (each, prospect) in zip(found, told.of.items(), strict=True):
        table = bucketed(prospect.device_s)
        assert rank == pytest.approx(table.at(each.attained_s - prospect.attained_s))
        assert ranks.of(each) == rank


def test_service_moves_a_rank_and_so_does_a_new_prospect() -> None:
    told = Told()
    one = live(0.0)
    told.of[one] = Prospect(0.0, np.full(9, 8.0), NOTHING)
    ranks = Ranks(told)
    assert ranks.tick([one]).tolist() == [8.0]
    one.attained_s = 3.0
    assert ranks.tick([one]).tolist() == [5.0]
    told.of[one] = Prospect(3.0, np.full(9, 20.0), NOTHING)
    one.shown += 1
    assert ranks.tick([one]).tolist() == [20.0]


def test_the_unknown_and_who_outlived_all_others_go_by_what_they_have_had() -> None:
    told = Told()
    fresh, older, outlived = live(0.0), live(7.0), live(12.0)
    for each in (fresh, older):
        told.of[each] = Prospect(0.0, NOTHING, NOTHING, least_s=2.0)
    told.of[outlived] = Prospect(1.0, np.full(9, 4.0), NOTHING)
    ranks = Ranks(told)
    assert ranks.tick([fresh, older, outlived]).tolist() == [2.0, 7.0, 12.0]
    for each in (fresh, older, outlived):
        assert ranks.of(each) == Ranks(told).of(each)


def test_rows_of_instances_that_ended_are_used_again() -> None:
    told = Told()
    ranks = Ranks(told)
    for number in range(1, 200):
        here = [live(0.0) for _ in range(number % 7)]
        told.of = {each: Prospect(0.0, np.full(4, float(number)), NOTHING) for each in here}
        assert ranks.tick(here).tolist() == [float(number)] * len(here)
    assert len(ranks._seen) <= 64
