"""Frozen experts come once, stay within the memory given, and go by last use: decided by hand."""

from collectives.placement import Placement
from hecate.fssdp.keeping import KeptCopies

OWNERS = Placement(((0,), (0,), (1,), (1,)), 2)
CHUNK, USED = 100, 10
PLENTY = 10_000


def placed(*on_other: int) -> Placement:
    """The owners, and those experts on the other rank as well."""
    return Placement(
        tuple((0, 1) if e in on_other else own for e, own in enumerate(OWNERS.holders)), 2
    )


def kept() -> KeptCopies:
    return KeptCopies([CHUNK], [USED], 2)


def test_a_copy_is_asked_for_once():
    copies = kept()
    assert copies.step([placed(0, 2)], [OWNERS], PLENTY) == (placed(0, 2),)
    assert copies.step([placed(0)], [OWNERS], PLENTY) == (OWNERS,)
    assert copies.step([placed(0, 1, 2)], [OWNERS], PLENTY) == (placed(1),)
    assert (copies.on(0), copies.on(1)) == ({(0, 2)}, {(0, 0), (0, 1)})


def test_the_longest_unused_goes_and_what_the_step_uses_stays():
    copies = kept()
    for expert in (0, 1):
        copies.step([placed(expert)], [OWNERS], 2 * CHUNK + USED)
    assert copies.on(1) == {(0, 0), (0, 1)}
    copies.step([placed(1)], [OWNERS], 2 * CHUNK + USED - 1)
    assert copies.on(1) == {(0, 1)}
    assert copies.step([placed(0, 1)], [OWNERS], 0) == (placed(0),)  # it was gone
    assert copies.on(1) == {(0, 0), (0, 1)}
    copies.step([OWNERS], [OWNERS], 0)
    assert copies.on(1) == frozenset()


def test_copies_added_after_the_gate_are_kept_as_well():
    copies = kept()
    copies.step([placed(0)], [OWNERS], PLENTY)
    assert copies.use(0, placed(0, 3), OWNERS) == placed(3)
    assert copies.use(0, placed(0, 3), OWNERS) == OWNERS


def test_an_owner_keeps_no_copy_beside_its_own():
    copies = kept()
    copies.step([placed(0, 2)], [OWNERS], PLENTY)
    moved = Placement(((1,), (0,), (1,), (1,)), 2)
    copies.owned(0, moved)
    assert (copies.on(0), copies.on(1)) == ({(0, 2)}, frozenset())
    back = Placement(((0, 1), (0,), (1,), (1,)), 2)
    assert copies.step([back], [moved], PLENTY) == (back,)
