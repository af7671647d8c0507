"""What is trained on and what is held out, file by file and record by record."""

import json

import datasets
import pytest

from hecate.data.config import DataConfig
from hecate.data.corpora import load_corpus
from hecate.errors import DataError


@pytest.fixture
def corpus_of(tmp_path):
    """``corpus_of({name: text}, **settings)`` writes a folder and loads it."""

    def load(files, name="data", path="", **settings):
        for file, text in files.items():
            target = tmp_path / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, newline="")
        path = str(tmp_path / name / path)
        return load_corpus(DataConfig(path=path, cache=str(tmp_path / "cache"), **settings))

    return load


def documents(corpus, *splits):
    """{split: its documents}, whole."""
    found = {"train": [], "held_out": []}
    text = ""
    for piece in corpus.pieces(splits or ("train", "held_out")):
        text += piece.text
        if piece.ends_document:
            found[piece.split].append(text)
            text = ""
    return found


def many_files(count=40):
    return {f"part{n:02}.txt": f"text of file {n}\n" * 20 for n in range(count)}


def test_whole_files_are_held_out_up_to_the_share(corpus_of):
    files = many_files()
    found = documents(corpus_of(files, held_out=0.1))
    assert sorted(found["train"] + found["held_out"]) == sorted(files.values())
    total = sum(map(len, files.values()))
    assert 0.08 * total < sum(map(len, found["held_out"])) <= 0.1 * total
    assert found["train"] == [text for text in files.values() if text in found["train"]]


def test_adding_to_one_file_moves_no_other_between_the_splits(corpus_of):
    files = many_files()
    before = documents(corpus_of(files, held_out=0.2))
    grown = next(name for name, text in files.items() if text in before["train"])
    files[grown] += "more\n"
    after = documents(corpus_of(files, held_out=0.2))
    assert before["held_out"] == after["held_out"]


def test_of_files_all_larger_than_the_share_the_smallest_is_held_out(corpus_of):
    found = documents(corpus_of({"a.txt": "long text\n" * 9, "b.md": "short\n"}, held_out=0.01))
    assert found == {"train": ["long text\n" * 9], "held_out": ["short\n"]}


def test_equal_files_and_empty_ones_count_once_and_not_at_all(corpus_of):
    found = documents(corpus_of({"a.txt": "one\n", "b.txt": "one\n", "c.txt": "", "d.txt": "2\n"}))
    assert sorted(found["train"] + found["held_out"]) == ["2\n", "one\n"]


def test_a_single_text_is_cut_once_at_a_line_near_its_end(corpus_of):
    text = "".join(f"line {n:03} ä\n" for n in range(200))
    found = documents(corpus_of({"a.txt": text}, held_out=0.1))
    (train,), (held_out,) = found["train"], found["held_out"]
    assert train + held_out == text
    assert train.endswith("\n")
    assert len(held_out.splitlines()) == 20


def test_a_single_text_without_lines_is_cut_between_characters(corpus_of):
    for length in range(20, 30):
        text = "☃" * length
        found = documents(corpus_of({"a.txt": text}, held_out=0.1))
        assert found["train"][0] + found["held_out"][0] == text
    with pytest.raises(DataError, match=r"a\.txt is too small"):
        corpus_of({"a.txt": "☃"})


def rows(count):
    return "".join(json.dumps({"text": f"record {n}"}) + "\n" for n in range(count))


def test_records_of_one_file_are_split_by_their_text(corpus_of):
    found = documents(corpus_of({"a.jsonl": rows(1000)}, held_out=0.1))
    assert len(found["train"]) + len(found["held_out"]) == 1000
    assert 70 < len(found["held_out"]) < 130
    doubled = documents(corpus_of({"a.jsonl": rows(500) + rows(1000)}, held_out=0.1))
    assert set(doubled["held_out"]) == set(found["held_out"])  # equal records stay together


def test_several_files_of_records_are_split_by_file_where_one_is_small_enough(corpus_of):
    files = {"big.jsonl": rows(300), "small.jsonl": '{"text": "held out"}\n'}
    assert documents(corpus_of(files))["held_out"] == ["held out"]
    shards = {f"{n}.jsonl": rows(200 + n) for n in range(2)}
    assert 5 < len(documents(corpus_of(shards, name="shards"))["held_out"]) < 40


def test_a_saved_dataset_is_split_as_it_says_or_by_document(tmp_path):
    settings = {"cache": str(tmp_path / "cache"), "held_out": 0.2}
    train = datasets.Dataset.from_dict({"text": [f"t{n}" for n in range(50)]})
    test = datasets.Dataset.from_dict({"text": ["h0", "", "h1"]})
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "both")
    found = documents(load_corpus(DataConfig(path=str(tmp_path / "both"), **settings)))
    assert found == {"train": train["text"][:], "held_out": ["h0", "h1"]}
    train.save_to_disk(tmp_path / "one")
    found = documents(load_corpus(DataConfig(path=str(tmp_path / "one"), **settings)))
    assert len(found["held_out"]) in range(3, 20)
    assert len(found["train"]) + len(found["held_out"]) == 50


def test_one_split_can_be_read_without_the_other(corpus_of):
    for files in ({"a.jsonl": rows(100)}, many_files(), {"a.txt": "line\n" * 99}):
        corpus = corpus_of(files, name=str(len(files)) + next(iter(files)))
        both = documents(corpus)
        assert documents(corpus, "train") == {"train": both["train"], "held_out": []}
        assert documents(corpus, "held_out") == {"train": [], "held_out": both["held_out"]}


def test_max_bytes_takes_whole_files_always_the_same(corpus_of):
    files = many_files()
    corpus = corpus_of(files, max_bytes=3000)
    assert 2000 < corpus.size_bytes <= 3000
    found = documents(corpus)
    assert set(found["train"] + found["held_out"]) < set(files.values())
    assert found["held_out"]
    assert corpus.digest == corpus_of(files, name="again", max_bytes=3000).digest
    with pytest.raises(DataError, match="larger than data.max_bytes"):
        corpus_of(files, max_bytes=10)


def test_max_bytes_takes_the_beginning_of_a_single_file(corpus_of):
    text = "".join(f"line {n:03}\n" for n in range(100))
    found = documents(corpus_of({"a.txt": text}, max_bytes=180, held_out=0.25))
    assert "".join(found["train"] + found["held_out"]) == text[:180]
    found = documents(corpus_of({"a.jsonl": rows(50)}, name="rows", max_bytes=80))
    assert sorted(found["train"] + found["held_out"]) == [f"record {n}" for n in range(10)]


def test_the_digest_names_the_text_and_its_split_not_its_place(corpus_of):
    files = many_files(5)
    digest = corpus_of(files).digest
    assert corpus_of(files, name="moved").digest == digest
    assert corpus_of(files, held_out=0.45).digest != digest
    assert corpus_of(files, text_field="body").digest == digest  # there is no field to read
    files["part00.txt"] += "."
    assert corpus_of(files).digest != digest
    lines = {"a.jsonl": rows(9)}
    of_rows = [
        corpus_of(lines, name="rows", **settings).digest
        for settings in ({}, {"held_out": 0.2}, {"text_field": "body"}, {"max_bytes": 50})
    ]
    assert len(set(of_rows)) == 4


def test_the_library_leaves_out_files_that_are_not_utf8(tmp_path):
    corpus = load_corpus(DataConfig(max_bytes=300_000, cache=str(tmp_path)))
    assert 200_000 < corpus.size_bytes <= 300_000
    found = documents(corpus)
    assert found["train"] and found["held_out"]
    assert corpus == load_corpus(DataConfig(max_bytes=300_000, cache=str(tmp_path)))


def test_a_users_file_that_is_not_utf8_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\n")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"b\.txt is not UTF-8"):
        load_corpus(DataConfig(path=str(tmp_path), cache=str(tmp_path / "cache")))


def chats(count):
    rows = ({"q": f"question {n}", "a": f"answer {n}"} for n in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows)


CHAT = {"kind": "chat", "chat": {"fields": {"user": "q", "assistant": "a"}}}


def test_conversations_are_split_by_their_text(corpus_of):
    corpus = corpus_of({"a.jsonl": chats(1000)}, held_out=0.1, **CHAT)
    splits = {"train": set(), "held_out": set()}
    for split, record in corpus.records():
        splits[split].add(record.text)
        assert [message.role for message in record.messages] == ["user", "assistant"]
    assert 70 < len(splits["held_out"]) < 130
    assert len(splits["held_out"] | splits["train"]) == 1000
    pieces = documents(corpus)  # what a tokenizer is trained on
    assert {split: set(texts) for split, texts in pieces.items()} == splits


def test_what_makes_the_turns_is_in_the_digest(corpus_of):
    def digest(chat):
        return corpus_of({"a.jsonl": chats(9)}, kind="chat", chat=chat).digest

    forms = [{}, {"system": "s"}, {"fields": {"user": "q", "assistant": "a"}}]
    forms.append({"fields": {"user": "a", "assistant": "q"}})
    assert len({digest(chat) for chat in forms}) == 4
    assert digest({"too_long": "truncate"}) == digest({"template": "x.jinja"}) == digest({})
    assert corpus_of({"a.jsonl": chats(9)}, text_field="q,a").digest != digest({})
