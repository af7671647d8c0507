"""The order of turns gives nobody a neighbour, or a place, for good."""

from __future__ import annotations

from collections import Counter

from hecate.bench.contest import turn_order

NAMES = ("fssdp", "expert_parallel", "shadowing", "swapping", "force_balanced")
STEPS = 400


def test_everyone_takes_every_step_once_and_all_ranks_agree() -> None:
    for step in range(20):
        order = turn_order(NAMES, step)
        assert sorted(order) == sorted(NAMES)
        assert order == turn_order(NAMES, step)


def test_places_and_neighbours_change() -> None:
    orders = [turn_order(NAMES, step) for step in range(STEPS)]
    places = Counter((name, place) for order in orders for place, name in enumerate(order))
    pairs = Counter(pair for order in orders for pair in zip(order, order[1:], strict=False))
    # a fifth of all steps each, and four fifths of them spread over four others: 80 either way
    for number, expected in ((places, 25), (pairs, 20)):
        assert len(number) == expected
        assert min(number.values()) > 80 / 2
        assert max(number.values()) < 80 * 1.5
