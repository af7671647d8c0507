"""What is learnt of a conversation: by hand, and as transformers renders and marks it."""

from pathlib import Path

import pytest
from chat import ALTERNATING, CHATML, END, MARKED, START, THINKING, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizer

from hecate.data.chat_template import ChatTemplate, read_template, template_of
from hecate.data.records import Message, Record
from hecate.errors import DataError, TokenizerError

ONE = [("user", "2+2?"), ("assistant", "four ☃")]
TWO = [("system", "s"), *ONE, ("user", "sure?"), ("assistant", "yes")]


def record(turns, where="chat.jsonl:1"):
    return Record("", where, 1, tuple(Message(*turn) for turn in turns))


def learnt(template, turns):
    """The whole text of a conversation, and the stretches of it that are targets."""
    tokenizer = byte_tokenizer(template)
    (chat,) = ChatTemplate(tokenizer).encode([record(turns)])
    assert len(chat.targets_T) == len(chat.token_ids)
    stretches, last = [], -2
    for place in chat.targets_T.nonzero()[0].tolist():
        if place > last + 1:
            stretches.append([])
        stretches[-1].append(chat.token_ids[place])
        last = place
    return tokenizer.decode(chat.token_ids), [tokenizer.decode(ids) for ids in stretches]


def test_of_a_plain_template_the_answers_and_their_ends_are_learnt():
    text, said = learnt(CHATML, ONE)
    assert text == f"{START}user\n2+2?{END}\n{START}assistant\nfour ☃{END}\n"
    assert said == [f"four ☃{END}\n"]
    text, said = learnt(CHATML, TWO)
    assert text.startswith(f"{START}system\ns{END}\n{START}user\n2+2?{END}\n")
    assert said == [f"four ☃{END}\n", f"yes{END}\n"]


def test_of_a_template_with_marks_what_they_enclose_is_learnt():
    text, said = learnt(MARKED, TWO)
    assert text == learnt(CHATML, TWO)[0]
    assert said == [f"four ☃{END}", f"yes{END}"]


def test_the_shipped_template_marks_the_answer_and_the_end_of_text():
    template = read_template(str(Path(__file__).parents[2] / "configs" / "chat" / "plain.jinja"))
    text, said = learnt(template, TWO)
    assert text == (
        "<|system|>\ns\n<|user|>\n2+2?\n<|assistant|>\nfour ☃<|endoftext|>\n"
        "<|user|>\nsure?\n<|assistant|>\nyes<|endoftext|>\n"
    )
    assert said == ["four ☃<|endoftext|>", "yes<|endoftext|>"]
    asked = byte_tokenizer(template).apply_chat_template(
        [{"role": "user", "content": "2+2?"}], tokenize=False, add_generation_prompt=True
    )
    assert asked == "<|user|>\n2+2?\n<|assistant|>\n"


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(str.strip)
chats = st.lists(st.tuples(texts, texts), min_size=1, max_size=3).map(
    lambda pairs: [t for q, a in pairs for t in (("user", q), ("assistant", a))]
)


@given(st.lists(chats, min_size=1, max_size=3), st.sampled_from([CHATML, MARKED]))
@settings(max_examples=40)
def test_a_batch_is_what_transformers_makes_of_each_conversation(batch, template):
    tokenizer = byte_tokenizer(template)
    encoded = ChatTemplate(tokenizer).encode([record(turns) for turns in batch])
    for turns, chat in zip(batch, encoded, strict=True):
        messages = [{"role": role, "content": content} for role, content in turns]
        marked = tokenizer.apply_chat_template(
            messages, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
        )
        assert chat.token_ids == marked["input_ids"]
        mask = list(map(bool, marked["assistant_masks"]))
        if template is CHATML:  # which ends a turn with a line end that belongs to it
            mask = [now or before for now, before in zip(mask, [False, *mask], strict=False)]
        assert chat.targets_T.tolist() == mask


def test_a_token_across_the_edge_of_an_answer_is_learnt():
    tokenizer = byte_tokenizer("{% for m in messages %}{{ m.content + ' ' }}{% endfor %}")
    tokenizer.add_tokens(["q a"])
    (chat,) = ChatTemplate(tokenizer).encode([record([("user", "xq"), ("assistant", "ab")])])
    said = [i for i, target in zip(chat.token_ids, chat.targets_T, strict=True) if target]
    assert tokenizer.decode(said) == "q ab "


def test_the_first_token_is_never_a_target():
    text, said = learnt(
        "{% for m in messages %}{{ m.content }}{% endfor %}", [("assistant", "abc")]
    )
    assert (text, said) == ("abc", ["bc"])


def test_a_template_whose_beginnings_change_with_the_end_is_refused_once_it_matters():
    assert learnt(THINKING, ONE)[1] == [f"<think></think>four ☃{END}\n"]
    with pytest.raises(TokenizerError, match="chat.jsonl:1.*(.|\n)*turn 3(.|\n)*{% generation %}"):
        learnt(THINKING, TWO)


@pytest.mark.parametrize("template", [ALTERNATING, MARKED + ALTERNATING])
def test_a_conversation_that_the_template_refuses_is_named(template):
    good, bad = record(ONE), record([*ONE, ("assistant", "more")], "chat.jsonl:2")
    chat_template = ChatTemplate(byte_tokenizer(template))
    assert len(chat_template.encode([good])) == 1
    with pytest.raises(DataError, match="chat.jsonl:2.*(.|\n)*must alternate(.|\n)*assistant, as"):
        chat_template.encode([good, bad])


def test_a_template_that_leaves_out_the_answer_is_refused():
    only_users = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    empty = only_users + "{% generation %}{% endgeneration %}"
    for template in (only_users, empty):
        with pytest.raises(TokenizerError, match="chat.jsonl:1.*leaves nothing of the assistant"):
            learnt(template, ONE)


def test_a_tokenizer_without_template_or_offsets_is_refused():
    with pytest.raises(TokenizerError, match="has no chat template(.|\n)*data.chat.template"):
        ChatTemplate(byte_tokenizer())
    with pytest.raises(TokenizerError, match="no chat template"):
        template_of(byte_tokenizer())

    class Slow(PreTrainedTokenizer):
        vocab_size = 1

        def get_vocab(self):
            return {"a": 0}

    with pytest.raises(TokenizerError, match="which characters(.|\n)*Slow(.|\n)*tokenizer.json"):
        ChatTemplate(Slow(chat_template=CHATML))


def test_a_template_is_a_file_or_itself(tmp_path):
    path = tmp_path / "a.jinja"
    path.write_text(CHATML)
    assert read_template(str(path)) == read_template(CHATML) == CHATML
    with pytest.raises(TokenizerError, match="cannot read data.chat.template nowhere.jinja"):
        read_template("nowhere.jinja")
