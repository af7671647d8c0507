"""What fits into memory, by hand: four experts of 10 bytes, gradients of 20."""

from __future__ import annotations

import numpy as np
import pytest

from collectives.placement import Placement
from hecate.fssdp.room import Room

OWNERS = (Placement.even(4, 2),) * 2
# rank 1 copies experts 0 and 1 in both layers, rank 0 expert 3 in the second
PLACEMENTS = (
    Placement(((0, 1), (0, 1), (1,), (1,)), 2),
    Placement(((0, 1), (0, 1), (1,), (0, 1)), 2),
)
LOADS = np.array([[5.0, 7, 0, 0], [9, 6, 0, 8]])


def room(budget: int, rematerialize: object = False) -> Room:
    return Room(budget, (10, 10), (20, 20), rematerialize)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rematerialize", "accumulates", "needed", "dropped"),
    [
        (False, False, 2 * 2 * 10 + 2 * 20, 1),
        (False, True, 2 * 2 * 10 + 2 * 2 * 20, 1),
        (True, False, 2 * 10 + 2 * 20, 2),  # one of each layer, since either is too large
        (True, True, 2 * 10 + 2 * 2 * 20, 1),
    ],
)
def test_copies_that_just_fit_are_left_as_they_are(rematerialize, accumulates, needed, dropped):
    fitted = room(needed, rematerialize).fit(PLACEMENTS, OWNERS, LOADS, accumulates=accumulates)
    assert (fitted.placements, fitted.dropped) == (PLACEMENTS, 0)
    assert fitted.rematerialize is rematerialize
    less = room(needed - 1, rematerialize)
    assert less.fit(PLACEMENTS, OWNERS, LOADS, accumulates=accumulates).dropped == dropped


def test_with_turns_only_a_layer_that_is_too_large_loses_copies():
    placements = (PLACEMENTS[0], OWNERS[1])
    cold_second = (OWNERS[0], PLACEMENTS[1])
    for chosen in (placements, cold_second):
        fitted = room(59, True).fit(chosen, OWNERS, LOADS, accumulates=False)
        assert fitted.dropped == 1
    uneven = (Placement(((0, 1), (0,), (1,), (1,)), 2), PLACEMENTS[1])
    fitted = room(59, True).fit(uneven, OWNERS, LOADS, accumulates=False)
    assert fitted.placements[0] is uneven[0]  # though its copy is the coldest of all
    assert fitted.dropped == 1


def test_the_coldest_copies_go_first_and_only_where_memory_is_short():
    # 70 bytes hold one copy of each layer and gradients of two, or two of one layer
    fitted = room(70).fit(PLACEMENTS, OWNERS, LOADS, accumulates=False)
    assert fitted.dropped == 1  # expert 0 of the first layer, with 5 slots
    assert fitted.placements[0].holders == ((0,), (0, 1), (1,), (1,))
    assert fitted.placements[1] is PLACEMENTS[1]
    none = room(0).fit(PLACEMENTS, OWNERS, LOADS, accumulates=False)
    assert [p.holders for p in none.placements] == [own.holders for own in OWNERS]
    assert none.dropped == 5


def test_auto_takes_turns_only_where_it_must():
    assert not room(80, "auto").fit(PLACEMENTS, OWNERS, LOADS, accumulates=False).rematerialize
    fitted = room(79, "auto").fit(PLACEMENTS, OWNERS, LOADS, accumulates=False)
    assert fitted.rematerialize and fitted.dropped == 0
    assert not room(0, "auto").fit(OWNERS, OWNERS, LOADS, accumulates=False).rematerialize


@pytest.mark.parametrize(
    ("rematerialize", "accumulates", "slots"),
    [
        (False, False, 1000 // 40),
        (False, True, 1000 // 60),
        (True, False, 1000 // 30),
        ("auto", True, 1000 // 50),
    ],
)
def test_slots_of_a_rank(rematerialize, accumulates, slots):
    assert room(1000, rematerialize).slots_per_rank(accumulates=accumulates) == slots
