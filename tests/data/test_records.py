"""Which fields are read of a record, and as what text."""

import pytest

from hecate.data.records import Record, TextForm, encodable
from hecate.errors import DataError


def test_a_text_is_the_fields_asked_for_in_that_order():
    form = TextForm(("answer", "question"))
    assert form.fields(["question", "n", "answer"], "a:1") == ("answer", "question")
    values = {"question": "q ☃", "n": 3, "answer": "a"}
    assert form.record(values, "a:1", 9) == Record("a\nq ☃", "a:1", 9)


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (["body", "title"], "a:1 has no field 'text'(\n.*)*the fields 'body', 'title'"),
        ([], "a:1 has no field 'text'(\n.*)*no field at all"),
    ],
)
def test_a_missing_field_is_named_with_those_that_are_there(found, named):
    with pytest.raises(DataError, match=named):
        TextForm(("text",)).fields(found, "a:1")


def test_what_is_no_text_is_refused():
    with pytest.raises(DataError, match="a:1: field 'text' is not text(\n.*)*null"):
        TextForm(("text",)).record({"text": None}, "a:1", 1)
    with pytest.raises(DataError, match="a:1 holds half of a surrogate pair"):
        encodable("x\ud800", "a:1")
