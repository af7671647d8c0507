"""Placements: blocks by hand, and what holds for any number of chunks and ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectives.placement import Placement


@pytest.mark.parametrize(
    ("num_chunks", "world_size", "rotation", "owners"),
    [
        pytest.param(6, 1, 0, (0,) * 6, id="one rank"),
        pytest.param(6, 3, 0, (0, 0, 1, 1, 2, 2), id="equal blocks"),
        pytest.param(6, 3, 1, (1, 1, 2, 2, 0, 0), id="equal blocks, rotated"),
        pytest.param(6, 4, 0, (0, 0, 1, 1, 2, 3), id="first blocks larger"),
        pytest.param(6, 4, 2, (2, 2, 3, 3, 0, 1), id="larger blocks rotated"),
        pytest.param(7, 3, 5, (2, 2, 2, 0, 0, 1, 1), id="rotation past the world"),
        pytest.param(3, 4, 0, (0, 1, 2), id="more ranks than chunks"),
        pytest.param(3, 4, 3, (3, 0, 1), id="more ranks than chunks, rotated"),
        pytest.param(2, 4, 2, (2, 3), id="the ranks that had none last time"),
        pytest.param(1, 5, 4, (4,), id="one chunk"),
    ],
)
def test_even_deals_contiguous_blocks(num_chunks, world_size, rotation, owners):
    placement = Placement.even(num_chunks, world_size, rotation=rotation)
    assert placement.owners == owners
    assert placement.world_size == world_size
    assert placement.num_chunks == num_chunks


def test_chunks_on_lists_a_ranks_chunks_and_nothing_for_an_idle_rank():
    placement = Placement.from_owners([2, 0, 2, 0, 0], 4)
    assert [placement.chunks_on(rank) for rank in range(4)] == [(1, 3, 4), (), (0, 2), ()]


def test_a_shared_chunk_lies_on_every_holder_and_has_no_owner():
    placement = Placement(((0,), (0, 2), (1, 2)), 3)
    assert not placement.is_partition
    assert [placement.chunks_on(rank) for rank in range(3)] == [(0, 1), (2,), (1, 2)]
    with pytest.raises(ValueError, match=r"chunk 1 is held by ranks \(0, 2\)"):
        _ = placement.owners


@pytest.mark.parametrize(
    ("holders", "world_size", "message"),
    [
        pytest.param(((0,), ()), 2, r"chunk 1 is held by \(\)", id="no holder"),
        pytest.param(((1, 0),), 2, r"chunk 0 is held by \(1, 0\); .* ascending", id="descending"),
        pytest.param(((0,), (1, 1)), 2, r"chunk 1 .* ascending", id="twice"),
        pytest.param(((0,), (2,)), 2, r"chunk 1 .* ranks in \[0, 2\)", id="past the world"),
        pytest.param(((-1,),), 2, r"chunk 0 .* ranks in \[0, 2\)", id="negative"),
        pytest.param((), 0, "over 0 ranks", id="no ranks"),
    ],
)
def test_a_placement_that_cannot_be_says_which_chunk(holders, world_size, message):
    with pytest.raises(ValueError, match=message):
        Placement(holders, world_size)


def test_contains_compares_chunk_by_chunk():
    wide = Placement(((0, 1), (1, 2), (2,)), 3)
    assert wide.contains(wide)
    assert wide.contains(Placement.from_owners([1, 2, 2], 3))
    assert not wide.contains(Placement.from_owners([2, 2, 2], 3))
    assert not Placement.from_owners([1, 2, 2], 3).contains(wide)
    assert not wide.contains(Placement.from_owners([1, 2, 2], 4))
    assert not wide.contains(Placement.from_owners([1, 2], 3))


def test_placements_are_values():
    assert Placement.even(5, 2) == Placement.from_owners([0, 0, 0, 1, 1], 2)
    assert len({Placement.even(5, 2), Placement.from_owners([0, 0, 0, 1, 1], 2)}) == 1


sizes = st.integers(1, 40)


@given(num_chunks=sizes, world_size=sizes, rotation=st.integers(0, 100))
def test_even_is_a_partition_into_blocks_that_differ_by_at_most_one(
    num_chunks, world_size, rotation
):
    placement = Placement.even(num_chunks, world_size, rotation=rotation)
    blocks = [placement.chunks_on(rank) for rank in range(world_size)]
    assert sorted(chunk for block in blocks for chunk in block) == list(range(num_chunks))
    lengths = [len(block) for block in blocks]
    assert max(lengths) - min(lengths) <= 1
    for block in blocks:
        assert list(block) == list(range(block[0], block[-1] + 1)) if block else True
    # Block i is dealt to rank (i + rotation) mod W, the larger ones first.
    dealt = [len(blocks[(i + rotation) % world_size]) for i in range(world_size)]
    assert dealt == sorted(dealt, reverse=True)


@given(owners=st.lists(st.integers(0, 6), max_size=30))
def test_chunks_on_is_the_inverse_of_owners(owners):
    placement = Placement.from_owners(owners, 7)
    assert placement.owners == tuple(owners)
    for rank in range(7):
        assert placement.chunks_on(rank) == tuple(c for c, o in enumerate(owners) if o == rank)
