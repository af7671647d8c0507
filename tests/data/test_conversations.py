"""Records become turns, and what cannot be learnt from is refused by its place."""

import pytest

from hecate.data.conversations import ChatForm
from hecate.errors import DataError

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def turns(values, form=None):
    form = form or ChatForm()
    where = "chat.jsonl:7"
    form.fields(list(values), where)
    record = form.record(values, where, 5)
    assert (record.where, record.source_bytes) == (where, 5)
    assert record.text == "\n".join(message.content for message in record.messages)
    return [(message.role, message.content) for message in record.messages]


def test_messages_are_taken_in_order_with_what_else_the_record_holds():
    system = {"role": "system", "content": " s\n"}
    values = {"id": 3, "messages": [system, Q, {**A, "name": "x"}, Q, A]}
    assert turns(values) == [
        ("system", " s\n"),
        ("user", "q"),
        ("assistant", "a"),
        ("user", "q"),
        ("assistant", "a"),
    ]


def test_sharegpt_is_read_too():
    values = {
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        "source": "x",
    }
    assert turns(values) == [("user", "q"), ("assistant", "a")]


def test_messages_win_over_conversations():
    assert turns({"conversations": [], "messages": [Q, A]}) == [("user", "q"), ("assistant", "a")]


def test_fields_are_mapped_to_turns():
    values = {"question": "q", "answer": "a", "setting": "s"}
    assert turns(values, ChatForm("question", "answer")) == [("user", "q"), ("assistant", "a")]
    mapped = ChatForm("question", "answer", "setting", "unused")
    assert turns(values, mapped) == [("system", "s"), ("user", "q"), ("assistant", "a")]


def test_a_system_text_opens_those_that_bring_none():
    form = ChatForm(system_text="be kind")
    opened = [("system", "be kind"), ("user", "q"), ("assistant", "a")]
    assert turns({"messages": [Q, A]}, form) == opened
    own = {"role": "system", "content": "be brief"}
    assert turns({"messages": [own, Q, A]}, form)[0] == ("system", "be brief")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"text": "x"}, "is not a conversation(.|\n)*the fields 'text'(.|\n)*data.chat.fields"),
        ({"messages": []}, "'messages' is no list of turns(.|\n)*an empty list"),
        ({"messages": None}, "'messages' is no list of turns(.|\n)*got: +nothing"),
        ({"messages": "hi"}, "'messages' is no list of turns(.|\n)*got: +str"),
        ({"messages": ["hi"]}, "turn 1 is not an object(.|\n)*got: +str"),
        ({"messages": [Q, {"content": "x"}]}, "turn 2 has no role(.|\n)*got: +no role"),
        (
            {"messages": [{**Q, "role": "wizard"}, A]},
            "turn 1 has no role(\n|.)*'wizard'(\n|.)*user",
        ),
        ({"messages": [{**Q, "role": ["user"]}, A]}, "turn 1 has no role that is known"),
        ({"messages": [Q, {**A, "content": ""}]}, "turn 2 says nothing(.|\n)*an empty string"),
        ({"messages": [Q, {**A, "content": " \n"}]}, "turn 2 says nothing(.|\n)*white space"),
        ({"messages": [Q, {"role": "assistant"}]}, "turn 2 is not text(.|\n)*got: +nothing"),
        ({"messages": [{**Q, "content": [{"type": "text"}]}]}, "turn 1 is not text(.|\n)*list"),
        ({"messages": [Q]}, "the assistant says nothing(.|\n)*turns of user"),
        ({"messages": [Q, {**A, "tool_calls": [{"id": 1}]}]}, "turn 2 holds 'tool_calls'"),
        ({"messages": [Q, {**A, "weight": 0}]}, "turn 2 holds 'weight'(.|\n)*weight: 0"),
        ({"messages": [{**Q, "content": "\ud800"}, A]}, "holds half of a surrogate pair"),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_turn(values, said):
    with pytest.raises(DataError, match=f"^chat.jsonl:7.*{said}") as raised:
        turns(values)
    assert raised.value.got and raised.value.expected and raised.value.fix


def test_what_has_no_effect_in_a_turn_is_let_be():
    harmless = {**A, "tool_calls": None, "function_call": None, "weight": 1}
    assert turns({"messages": [Q, harmless]}) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"question": "q"}, "has no field 'answer'(.|\n)*the fields 'question'"),
        ({"question": "q", "answer": None}, ": field 'answer' is not text"),
        ({"question": " ", "answer": "a"}, ": field 'question' says nothing"),
    ],
)
def test_a_bad_mapped_record_is_named_by_its_field(values, said):
    with pytest.raises(DataError, match=f"chat.jsonl:7{said}|chat.jsonl:7 {said}"):
        turns(values, ChatForm("question", "answer"))


def test_a_table_is_read_by_the_columns_of_turns_alone():
    assert ChatForm().fields(["id", "conversations", "messages"], "d") == ["messages"]
    assert ChatForm("q", "a", "s").fields(["a", "s", "q", "z"], "d") == ["s", "q", "a"]
