"""A file is there whole or not at all."""

from pathlib import Path

import pytest

from hecate.errors import StorageError
from hecate.files import write_text


def test_a_file_is_written_with_its_folders_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.html"
    write_text(path, "one")
    write_text(path, "é")
    assert path.read_text(encoding="utf-8") == "é"
    assert [each.name for each in path.parent.iterdir()] == ["a.html"]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new\udc80")
    assert path.read_text() == "old"
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        write_text(tmp_path / "folder", "text")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.html", "folder"]
