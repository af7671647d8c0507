"""Tags: whatever is said of an application is read, or leaves the request untagged."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.scheduling.applications.tags import FIELDS, UNTAGGED, Reader, Tags, read
from serving.scheduling.applications.traces import Kind

NAMED = {"class": "summary", "id": "7"}


def test_all_that_can_be_said_is_read() -> None:
    said = {"unit": "map", "kind": "search", "deadline_s": "2.5", "last": "true"}
    assert read(NAMED | said) == Tags("summary", "7", "map", Kind.SEARCH, 2.5, True)


def test_a_class_is_enough_and_nothing_is_no_tag() -> None:
    assert read({"class": "chat"}) == Tags("chat", "", "call", Kind.LLM, math.inf, False)
    assert read({}) == UNTAGGED and not UNTAGGED.tagged


@pytest.mark.parametrize(
    "said",
    [
        {"id": "7"},
        {"class": "a" * 129},
        {"class": 5},
        {"class": "new\nline"},
        {"class": "é"},
        NAMED | {"id": " 7"},
        NAMED | {"deadline_s": "soon"},
        NAMED | {"deadline_s": "0"},
        NAMED | {"deadline_s": "inf"},
        NAMED | {"deadline_s": "nan"},
        NAMED | {"deadline_s": True},
        NAMED | {"deadline_s": 10**400},
        NAMED | {"kind": "gpu"},
        NAMED | {"kind": []},
        NAMED | {"last": "perhaps"},
        NAMED | {"units": "map"},
    ],
)
def test_what_cannot_be_read_is_untagged_counted_and_warned_of_once(
    said: dict[str, object],
) -> None:
    with pytest.raises(ValueError, match=r"application|unit"):
        read(said)
    warnings: list[str] = []
    reader = Reader(warnings.append)
    assert [reader.read(said) for _ in range(3)] == [UNTAGGED] * 3
    assert reader.malformed == 3 and len(warnings) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)) | st.text(), JSON))
def test_nothing_that_is_said_breaks_the_reader(said: dict[str, object]) -> None:
    warnings: list[str] = []
    tags = Reader(warnings.append).read(said)
    assert tags.tagged or tags == UNTAGGED
    assert tags.deadline_s > 0
    assert all(len(warning) < 1000 for warning in warnings)


def test_mistakes_are_not_remembered_without_bound() -> None:
    warnings: list[str] = []
    reader = Reader(warnings.append)
    for number in range(1000):
        reader.read(NAMED | {f"field{number}": number, "deadline_s": -number})
        reader.read(NAMED | {"deadline_s": -number})
    assert reader.malformed == 2000 and len(warnings) == 2
