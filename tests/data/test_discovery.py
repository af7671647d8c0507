"""Which files are found, in which order, and what their digests are."""

import hashlib
import os
import sysconfig
import time
from pathlib import Path

import datasets
import pytest

from hecate.data.discovery import RECORDS, FoundFile, digest_files, find_files
from hecate.errors import DataError


def write(folder, **files):
    """Files by name, with ``__`` for a slash and ``_`` for the dot of the extension."""
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path = path.with_name(path.name[::-1].replace("_", ".", 1)[::-1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_standard_library_is_its_own_sources_and_nothing_installed():
    files = find_files("stdlib")
    names = [file.name for file in files]
    assert names == sorted(names)
    assert {"ast.py", "json/decoder.py"} <= set(names)
    library = Path(sysconfig.get_path("stdlib"))
    assert all(library in file.path.parents and file.kind == "text" for file in files)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert not folders & {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
    assert sum(file.size_bytes for file in files) > 4_000_000


def test_a_folder_is_walked_by_name_and_kind(tmp_path):
    write(tmp_path, b_txt="b", sub__a_py="a", A_MD="m", z_jsonl="{}", image_png="x", empty_txt="")
    write(tmp_path, **{".hidden__c_txt": "c", "__pycache__x": "x"})
    (tmp_path / ".dot.txt").write_text("dot")
    assert [(file.name, file.kind, file.size_bytes) for file in find_files(str(tmp_path))] == [
        ("A.MD", "text", 1),
        ("b.txt", "text", 1),
        ("sub/a.py", "text", 1),
        ("z.jsonl", "jsonl", 2),
    ]


def test_one_file_is_a_corpus(tmp_path):
    write(tmp_path, a_parquet="x", b_txt="y")
    (file,) = find_files(str(tmp_path / "a.parquet"))
    assert (file.name, file.kind) == ("a.parquet", "parquet")


def test_home_is_spelled_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, a_txt="x")
    assert [file.path for file in find_files("~/a.txt")] == [tmp_path / "a.txt"]


def test_what_cannot_be_a_corpus_is_refused_by_name(tmp_path):
    write(tmp_path, few__a_pdf="x", few__b_pdf="x", few__c_docx="x", none__a_txt="")
    (tmp_path / "bare").mkdir()
    for path, named in [
        ("gone", "gone does not exist"),
        ("few", r"no file below .*few.*(\n.*)*2 \.pdf, 1 \.docx"),
        ("bare", r"no file below .*bare.*(\n.*)*an empty folder"),
        ("none", "none is empty"),
        ("none/a.txt", "is empty"),
        ("few/a.pdf", r"of a kind that is not read(\n.*)*\.pdf"),
    ]:
        with pytest.raises(DataError, match=named):
            find_files(str(tmp_path / path))


def test_a_link_to_nowhere_is_an_error(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(DataError, match=r"a\.txt"):
        find_files(str(tmp_path))


def saved(folder, **splits):
    rows = {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in splits.items()}
    datasets.DatasetDict(rows).save_to_disk(folder)
    return [(file.name, file.kind, file.split) for file in find_files(str(folder))]


def test_a_saved_dataset_keeps_its_own_splits(tmp_path):
    assert saved(tmp_path / "a", test=["x"], train=["y"], validation=["z"]) == [
        ("train", "dataset", "train"),
        ("validation", "dataset", "held_out"),
    ]
    assert saved(tmp_path / "b", only=["x"]) == [("only", "dataset", "")]
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "c")
    assert [(f.name, f.split) for f in find_files(str(tmp_path / "c"))] == [("c", "")]
    with pytest.raises(DataError, match="the splits 'train', 'extra'"):
        saved(tmp_path / "d", train=["x"], extra=["y"])
    (tmp_path / "a" / "dataset_dict.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset_dict\.json is damaged"):
        find_files(str(tmp_path / "a"))


def test_digests_are_of_the_content(tmp_path):
    write(tmp_path, data__a_txt="same", data__b_txt="same", data__c_jsonl="other")
    files = find_files(str(tmp_path / "data"))
    expected = [hashlib.sha256(text).hexdigest() for text in (b"same", b"same", b"other")]
    assert digest_files(files, tmp_path / "cache", strict=True) == expected


def test_text_that_is_not_utf8_has_no_digest_or_is_an_error(tmp_path):
    paths = [tmp_path / "bad.txt", tmp_path / "cut.txt", tmp_path / "rows.jsonl"]
    for path, content in zip(paths, [b"a\xff", "é".encode()[:1], b"\xff"], strict=True):
        path.write_bytes(content)
    files = [
        FoundFile(p.name, p, k, 1) for p, k in zip(paths, ["text", "text", "jsonl"], strict=True)
    ]
    assert digest_files(files, tmp_path / "cache", strict=False) == [
        "",
        "",
        hashlib.sha256(b"\xff").hexdigest(),
    ]
    for file, offset in zip(files[:2], (1, 0), strict=True):
        with pytest.raises(DataError, match=f"{file.name} is not UTF-8 text(\n.*)*offset {offset}"):
            digest_files([file], tmp_path / "cache", strict=True)


def test_digests_are_remembered_until_a_file_changes(tmp_path):
    path, cache = tmp_path / "a.txt", tmp_path / "cache"
    path.write_text("one")
    file = FoundFile("a.txt", path, "text", 3)
    first = digest_files([file], cache, strict=True)
    assert not cache.exists()  # it was written just now: its times may not tell the next change
    time.sleep(2.2)
    assert digest_files([file], cache, strict=True) == first
    (memory,) = (cache / "listings").iterdir()
    memory.write_text('["remembered"]')
    assert digest_files([file], cache, strict=True) == ["remembered"]
    path.write_text("two")
    os.utime(path, ns=(0, 0))  # even with its old size and a time of its own choosing
    assert digest_files([file], cache, strict=True) == [hashlib.sha256(b"two").hexdigest()]
    memory.write_text("{")  # a damaged memory is no memory
    path.write_text("one")
    assert digest_files([file], cache, strict=True) == first


def test_of_records_alone_what_lies_beside_them_is_not_read(tmp_path):
    write(tmp_path, README_md="about", a_jsonl="{}", b_parquet="x", c_txt="text")
    assert [file.name for file in find_files(str(tmp_path), RECORDS)] == ["a.jsonl", "b.parquet"]
    with pytest.raises(
        DataError, match=r"got: +\.txt(.|\n)*one of \.jsonl, \.parquet(.|\n)*\.jsonl"
    ):
        find_files(str(tmp_path / "c.txt"), RECORDS)
