"""Text comes back whole and every fault of the input is named with its place."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hecate.data.conversations import ChatForm
from hecate.data.readers import PIECE_CHARACTERS, pieces_of, read_records, read_text
from hecate.data.records import Message, Record, TextForm
from hecate.errors import DataError


def text_of(path, start=0, end=0):
    pieces = list(read_text(path, start, end or path.stat().st_size))
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert sum(piece.source_bytes for piece in pieces) == (end or path.stat().st_size) - start
    return [piece.text for piece in pieces]


def records(kind, path, *fields):
    return [record.text for record in read_records(kind, path, TextForm(fields or ("text",)))]


def test_a_short_file_is_one_piece_with_its_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\rä☃\n".encode())
    assert text_of(path) == ["\ufeffone\r\ntwo\rä☃\n"]
    assert text_of(path, 8, 12) == ["two\r"]


@pytest.mark.parametrize("line", ["short line ☃\n", "☃" * 100_000 + "\n", "no line end at all ä"])
def test_a_long_file_is_cut_at_line_ends_and_comes_back_whole(tmp_path, line):
    whole = line * (3 * PIECE_CHARACTERS // len(line))
    path = tmp_path / "long.txt"
    path.write_text(whole, newline="")
    pieces = text_of(path)
    assert "".join(pieces) == whole
    assert len(pieces) > 2
    if line.startswith("short"):
        assert all(piece.endswith("\n") for piece in pieces)


@given(st.text(), st.integers(1, 20))
def test_a_record_comes_back_whole_from_its_pieces(text, longest):
    pieces = list(pieces_of(Record(text, "here", 7), longest))
    assert "".join(piece.text for piece in pieces) == text
    assert sum(piece.source_bytes for piece in pieces) == 7
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(len(piece.text) <= longest for piece in pieces)


def test_bytes_that_are_not_utf8_are_named_by_file_and_offset(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("☃".encode() + b"caf\xe9 noir")
    with pytest.raises(DataError, match=r"latin\.txt.*(\n.*)*0xe9 at offset 6"):
        text_of(path)
    path.write_bytes(b"x" * (PIECE_CHARACTERS + 3) + b"\xff")
    with pytest.raises(DataError, match=f"offset {PIECE_CHARACTERS + 3}"):
        text_of(path)


def test_a_file_that_shrinks_or_goes_is_an_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("four")
    with pytest.raises(DataError, match="became shorter"):
        list(read_text(path, 0, 9))
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.txt"):
        list(read_text(path, 0, 4))


def test_jsonl_joins_the_fields_in_the_order_asked_for(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"question": "q1 ☃", "answer": "a1"}, {"answer": "a2", "question": "q2", "n": 3}]
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert records("jsonl", path, "answer", "question") == ["a1\nq1 ☃", "a2\nq2"]
    assert records("jsonl", path, "question") == ["q1 ☃", "q2"]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b'{"text": "cut', r"a\.jsonl:3 is not a line of JSON"),
        (b'{"text": "\xff"}', r"a\.jsonl:3 is not a line of JSON"),
        (b"[" * 100_000, r"a\.jsonl:3 is not a line of JSON"),
        (b'["text"]', r"a\.jsonl:3 is not a JSON object"),
        (b'{"body": "x", "title": "y"}', r"a\.jsonl:3 has no field 'text'(\n.*)*'body', 'title'"),
        (b"{}", r"a\.jsonl:3 has no field 'text'(\n.*)*no field at all"),
        (b'{"text": null}', r"a\.jsonl:3: field 'text' is not text(\n.*)*null"),
        (b'{"text": ["x"]}', r"a\.jsonl:3: field 'text' is not text(\n.*)*list"),
        (b'{"text": "\\ud800"}', r"a\.jsonl:3 holds half of a surrogate pair"),
    ],
)
def test_a_bad_line_of_jsonl_is_named_by_its_number(tmp_path, line, named):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=named):
        records("jsonl", path)


def test_parquet_reads_the_named_columns_of_every_row_group(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"row {n}" for n in range(2500)]
    table = pa.table({"n": list(range(2500)), "text": texts, "more": texts})
    pq.write_table(table, path, row_group_size=700)
    assert records("parquet", path) == texts
    assert records("parquet", path, "more", "text")[7] == "row 7\nrow 7"
    read = sum(record.source_bytes for record in read_records("parquet", path, TextForm(("text",))))
    assert read == path.stat().st_size


def test_bad_parquet_is_named_by_file_column_and_row(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet"):
        records("parquet", path)
    pq.write_table(pa.table({"n": [1, 2], "text": ["x", None]}), path)
    with pytest.raises(DataError, match="has no field 'body'(\n.*)*'n', 'text'"):
        records("parquet", path, "body")
    with pytest.raises(DataError, match="row 1: field 'text' is not text(\n.*)*null"):
        records("parquet", path)
    with pytest.raises(DataError, match="row 0: field 'n' is not text(\n.*)*int"):
        records("parquet", path, "n")


def test_a_saved_dataset_is_read_in_its_own_order(tmp_path):
    saved = datasets.Dataset.from_dict(
        {"n": list(range(1500)), "text": [str(n) for n in range(1500)]}
    )
    saved.save_to_disk(tmp_path / "d", num_shards=2)
    assert records("dataset", tmp_path / "d") == [str(n) for n in range(1500)]
    with pytest.raises(DataError, match="has no field 'body'(\n.*)*'n', 'text'"):
        records("dataset", tmp_path / "d", "body")


def test_a_damaged_dataset_is_an_error(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "d")
    (arrow,) = (tmp_path / "d").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot read .*d\n"):
        records("dataset", tmp_path / "d")


def test_conversations_are_read_from_every_kind_of_file(tmp_path):
    chats = [[("user", f"q{n}"), ("assistant", f"a{n} ☃")] for n in range(3)]
    rows = [
        {"id": n, "messages": [{"role": role, "content": text} for role, text in chat]}
        for n, chat in enumerate(chats)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "d")
    expected = [tuple(Message(role, text) for role, text in chat) for chat in chats]
    for kind, name in [("jsonl", "a.jsonl"), ("parquet", "a.parquet"), ("dataset", "d")]:
        read = list(read_records(kind, tmp_path / name, ChatForm()))
        assert [record.messages for record in read] == expected
    assert read[2].where.endswith("d, row 2")
    assert read[0].text == "q0\na0 ☃"
    with pytest.raises(DataError, match=r"a\.parquet has no field 'question'"):
        next(read_records("parquet", tmp_path / "a.parquet", ChatForm("question", "answer")))
