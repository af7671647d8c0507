"""Documents as tokens: text with its end, conversations with what is learnt of them."""

import json

import numpy as np
from chat import MARKED, byte_tokenizer

from hecate.data.config import DataConfig
from hecate.data.corpora import load_corpus
from hecate.data.encoding import encode_chat, encode_text


def corpus_of(tmp_path, records, **settings):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_corpus(DataConfig(path=str(path), cache=str(tmp_path / "cache"), **settings))


def flat(batches):
    return [encoded for batch in batches for encoded in batch]


def test_a_text_is_followed_by_its_end_and_learnt_whole(tmp_path):
    tokenizer = byte_tokenizer()
    texts = [f"text {n} ☃" for n in range(30)]
    encoded = flat(encode_text(corpus_of(tmp_path, [{"text": t} for t in texts]), tokenizer))
    assert [tokenizer.decode(part.token_ids) for part in encoded] == [
        text + "<|endoftext|>" for text in texts
    ]
    assert all(part.targets_T is np.True_ and part.ends_document for part in encoded)
    assert [part.text for part in encoded] == texts


def test_a_conversation_is_its_rendering_and_what_the_assistant_says_its_text(tmp_path):
    tokenizer = byte_tokenizer(MARKED)
    records = [{"q": f"q{n}", "a": f"a{n} ☃"} for n in range(30)]
    chat = {"fields": {"user": "q", "assistant": "a"}, "system": "s"}
    encoded = flat(encode_chat(corpus_of(tmp_path, records, kind="chat", chat=chat), tokenizer))
    for record, part in zip(records, encoded, strict=True):
        turns = [("system", "s"), ("user", record["q"]), ("assistant", record["a"])]
        assert tokenizer.decode(part.token_ids) == tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns], tokenize=False
        )
        learnt = np.array(part.token_ids)[part.targets_T].tolist()
        assert tokenizer.decode(learnt) == record["a"] + "<|im_end|>"
        assert (part.text, part.ends_document) == (record["a"], True)
    assert {part.split for part in encoded} == {"train", "held_out"}
