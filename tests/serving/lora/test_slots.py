"""Places on the device, and who waits for one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidRequest, ModelNotFound
from serving.lora.costs import FormCosts, Group
from serving.lora.facts import AdapterFacts
from serving.lora.gate import AdapterGate, Waiting
from serving.lora.registry import Registry, check_name
from serving.lora.slots import Place, Slots, slot_class

RANKS = (1, 4, 6, 8, 12, 16, 32)


def facts(name: str, rank: int = 16) -> AdapterFacts:
    return AdapterFacts(name, f"digest of {name}", "", rank, 0)


def test_classes_are_powers_of_two() -> None:
    assert [slot_class(rank) for rank in RANKS] == [4, 4, 8, 8, 16, 16, 32]


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", "e", "f"]), st.booleans())))
def test_places_never_overlap_and_leases_hold(steps: list[tuple[str, bool]]) -> None:
    slots = Slots(2, 16)
    leases: dict[str, int] = {}
    rank = {"a": 16, "b": 32, "c": 4, "d": 8, "e": 16, "f": 5}
    for name, takes in steps:
        if not takes:
            if leases.get(name):
                slots.release(name)
                leases[name] -= 1
            continue
        place = slots.lease(name)
        if place is None and rank[name] <= 32:
            taken = slots.take(name, rank[name])
            if taken is None:
                assert any(leases.values())
                continue
            assert not any(leases.get(gone) for gone in taken[1])
        leases[name] = leases.get(name, 0) + 1
        places = [slots.place(each) for each in slots.resident]
        for one, other in itertools.combinations(places, 2):
            assert one.stop <= other.start or other.stop <= one.start
        assert all(p.start % p.width == 0 and p.stop <= slots.rows for p in places)
        assert all(each in slots.resident for each, count in leases.items() if count)


def test_the_least_recently_used_gives_way() -> None:
    slots = Slots(2, 16)
    for name in ("a", "b"):
        assert slots.take(name, 16) is not None
        slots.release(name)
    slots.lease("a")
    slots.release("a")
    assert slots.take("c", 16) == (Place(16, 16), ("b",))
    assert slots.lease("a") == Place(0, 16)
    assert slots.take("d", 16) is None  # both are in use


def test_small_adapters_leave_large_slots_whole() -> None:
    slots = Slots(2, 16)
    for name in ("a", "b", "c"):
        assert slots.take(name, 4) is not None  # three of the four quarters of one slot
    assert slots.take("large", 16) == (Place(16, 16), ())
    for name in ("a", "b", "c"):
        slots.release(name)
    taken = slots.take("other", 9)
    assert taken is not None and set(taken[1]) == {"a", "b", "c"}


class Gate:
    """With loads that end when the test says so."""

    def __init__(
        self, slots: int = 1, at_once: Sequence[str] = (), guests: Sequence[str] = ()
    ) -> None:
        self.at_once = at_once
        self.now = 0.0
        self.loads: list[str] = []
        self.gate = AdapterGate(
            Slots(slots, 16),
            self._load,
            lambda: self.now,
            patience_s=1.0,
            guests=lambda first: first.facts.name in guests,
        )

    def _load(self, first: Waiting, place: Place) -> bool:
        self.loads.append(first.facts.digest)
        return first.facts.name in self.at_once


def test_requests_of_an_adapter_that_needs_no_load_go_on_at_once() -> None:
    """And hold their place until they end, whether the load under way ends before or after."""
    g = Gate(slots=1, at_once=("a", "b"))
    assert g.gate.enter("1", facts("a")).ready == ["1"]
    assert g.gate.enter("2", facts("a")).ready == ["2"]
    assert g.loads == ["digest of a"]
    assert g.gate.leave("1").ready == g.gate.leave("2").ready == []
    assert g.gate.enter("3", facts("b")).ready == []  # its place is still being filled
    assert g.gate.loaded("digest of a").ready == ["3"]
    failed = g.gate.loaded("digest of b", "no such file").failed
    assert failed == [("3", "no such file")]


def test_guests_go_on_without_a_place_until_they_end() -> None:
    """They have places that none of the others' overlap, and none gives way to them."""
    slots = Slots(1, 16)
    assert slots.take("a", 16) == (Place(0, 16), ())
    assert slots.guest("b", 8) == Place(-8, 8)
    assert slots.guest("c", 16) == Place(-32, 16)
    assert slots.lease("b") == Place(-8, 8)
    assert slots.resident == ("a",) and slots.guests == ("b", "c")
    slots.release("b")
    slots.release("c")
    assert slots.guests == ("b",)
    slots.release("b")
    assert slots.guests == () and slots.lease("b") is None

    g = Gate(slots=1, guests=("b",))
    g.gate.enter("1", facts("a"))
    assert g.gate.loaded("digest of a").ready == ["1"]
    assert g.gate.enter("2", facts("b")).ready == ["2"]
    assert g.gate.enter("3", facts("c")).ready == []
    assert g.gate.enter("4", facts("b")).ready == ["4"]
    assert g.gate.guests == ("digest of b",) and g.loads == ["digest of a"]
    assert g.gate.resident == ("digest of a",)
    assert g.gate.leave("2").ready == g.gate.leave("4").ready == []
    assert g.gate.leave("1").ready == [] and g.loads == ["digest of a", "digest of c"]
    assert g.gate.loaded("digest of c").ready == ["3"]


def test_requests_wait_for_their_adapter_and_no_other() -> None:
    g = Gate(slots=2)
    assert g.gate.enter("1", facts("a")).ready == []
    assert g.gate.enter("2", facts("a")).ready == []
    assert g.gate.enter("3", facts("b")).ready == []
    assert g.loads == ["digest of a", "digest of b"]
    assert g.gate.loaded("digest of b").ready == ["3"]
    assert g.gate.loaded("digest of a").ready == ["1", "2"]
    assert g.gate.enter("4", facts("a")).ready == ["4"]
    assert g.gate.place("4") == g.gate.place("1") != g.gate.place("3")
    assert set(g.gate.resident) == {"digest of a", "digest of b"}


def test_an_adapter_that_waits_long_gets_a_slot() -> None:
    g = Gate()
    g.gate.enter("1", facts("a"))
    assert g.gate.loaded("digest of a").ready == ["1"]
    assert g.gate.enter("2", facts("b")).ready == []
    assert g.gate.enter("3", facts("a")).ready == ["3"]  # overtakes while there is patience
    g.now = 2.0
    assert g.gate.enter("4", facts("a")).ready == []
    assert g.gate.leave("1").ready == []
    assert g.loads == ["digest of a"]
    assert g.gate.leave("3").ready == []
    assert g.loads == ["digest of a", "digest of b"]
    assert g.gate.loaded("digest of b").ready == ["2"]
    assert g.gate.leave("2").ready == []
    assert g.gate.loaded("digest of a").ready == ["4"]


def test_a_load_that_fails_fails_its_requests_alone() -> None:
    g = Gate()
    g.gate.enter("1", facts("a"))
    g.gate.enter("2", facts("b"))
    passed = g.gate.loaded("digest of a", "no such file")
    assert passed.failed == [("1", "no such file")] and passed.ready == []
    assert g.gate.loaded("digest of b").ready == ["2"]
    g.gate.leave("2")
    g.gate.enter("3", facts("a"))
    assert g.gate.loaded("digest of a").ready == ["3"]


def test_a_request_may_leave_while_it_waits() -> None:
    g = Gate()
    g.gate.enter("1", facts("a"))
    g.gate.enter("2", facts("b"))
    g.gate.leave("1")
    assert g.loads == ["digest of a"]
    assert g.gate.loaded("digest of a").ready == []
    assert g.loads == ["digest of a", "digest of b"]
    assert g.gate.loaded("digest of b").ready == ["2"]


def test_names_mean_what_they_were_given_last() -> None:
    registry = Registry()
    registry.assign(facts("a"))
    registry.assign(AdapterFacts("a", "other", "", 4, 0))
    assert registry.find("a").digest == "other"
    assert registry.remove("a").digest == "other"
    with pytest.raises(ModelNotFound, match="no adapter a"):
        registry.find("a")
    for name in ("", " a", "a\n", "x" * 300):
        with pytest.raises(InvalidRequest, match="no name"):
            check_name(name)


def test_few_rows_go_padded_and_many_alone() -> None:
    """A segment of rank 8: 10 + 8; padded 2 a row and 8 ranks, and 5 for the product."""
    costs = FormCosts(5.0, 0.25, 10.0, 1.0, 0.0)
    assert costs.alone([Group(1, 8), Group(2, 8), Group(40, 8)]) == [False, False, True]
    assert costs.alone([Group(7, 8)]) == [True]  # 4 saved is less than the product costs
    assert costs.alone([Group(7, 8), Group(7, 8)]) == [False, False]  # 8 is more
    assert costs.padded([Group(1, 8), Group(1, 16)]) == 16.0
