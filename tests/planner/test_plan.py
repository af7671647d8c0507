"""Plans as values: who holds what, and digests that tell plans apart."""

from __future__ import annotations

import numpy as np
import pytest

from collectives.placement import Placement
from hecate.planner.plan import Plan, Replicas, replicas_to_placements

OWNERS = (Placement.from_owners([0, 1, 2], 3), Placement.from_owners([2, 2, 0], 3))


def test_copies_are_sorted_whatever_their_order() -> None:
    copies = Replicas.of([(1, 0, 1), (0, 2, 1), (0, 2, 0)])
    assert copies.triples() == [(0, 2, 0), (0, 2, 1), (1, 0, 1)]
    assert copies.layer.dtype == copies.expert.dtype == copies.rank.dtype == np.int32
    assert copies == Replicas.of(copies.triples()) != Replicas.none()
    assert copies.of_layers(np.array([False, True])).triples() == [(1, 0, 1)]


def test_copies_join_the_owners() -> None:
    placements = replicas_to_placements(OWNERS, Replicas.of([(1, 0, 1), (1, 0, 0), (1, 2, 1)]))
    assert placements[0] is OWNERS[0]
    assert placements[1].holders == ((0, 1, 2), (2,), (0, 1))


@pytest.mark.parametrize("copy", [(2, 0, 0), (0, 3, 0), (-1, 0, 0), (0, 0, 3)])
def test_copies_of_what_does_not_exist_are_refused(copy: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replicas_to_placements(OWNERS, Replicas.of([copy]))


def test_plans_have_the_digest_of_what_they_say() -> None:
    more = replicas_to_placements(OWNERS, Replicas.of([(1, 0, 1)]))
    plan = Plan(3, OWNERS, more)
    assert plan.digest() == Plan(3, tuple(OWNERS), tuple(more)).digest()
    assert 0 <= plan.digest() < 1 << 63
    others = [Plan(4, OWNERS, more), Plan(3, OWNERS, OWNERS)]
    assert len({plan.digest(), *(other.digest() for other in others)}) == 3
    assert plan.layer_digests[0] == others[1].layer_digests[0]
    assert plan.layer_digests[1] != others[1].layer_digests[1]
    assert plan.num_copies == 1


def test_a_plan_whose_owners_do_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="layer 1: owners"):
        Plan(0, OWNERS, (OWNERS[0], Placement.from_owners([0, 0, 0], 3)))
    with pytest.raises(ValueError, match="as many of each"):
        Plan(0, OWNERS, OWNERS[:1])
