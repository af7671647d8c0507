"""A folder appears whole or not at all."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hecate.errors import StorageError
from hecate.models.hub.publish import MARKER, publish_folder


def write_export(out: Path, word: str) -> None:
    with publish_folder(out) as folder:
        (folder / MARKER).write_text("{}")
        (folder / "content").write_text(word)


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """A file system that takes no more than ``size_bytes`` in a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with publish_folder(out) as folder:
        (folder / "content").write_text("whole")
        assert not out.exists()
    assert (out / "content").read_text() == "whole"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_empty_folder_and_an_earlier_export_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_export(out, "first")
    (out / "stray").write_text("of the first")
    write_export(out, "second")
    assert (out / "content").read_text() == "second"
    assert not (out / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_any_other_folder_or_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theses").mkdir()
    (tmp_path / "theses" / "mine.txt").write_text("years of work")
    (tmp_path / "file").write_text("too")
    for name in ("theses", "file"):
        with pytest.raises(StorageError, match="is no earlier export"):
            write_export(tmp_path / name, "new")
    assert (tmp_path / "theses" / "mine.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "theses"]


def test_a_failure_leaves_the_earlier_export(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_export(out, "first")
    with pytest.raises(ZeroDivisionError), publish_folder(out) as folder:
        (folder / "content").write_text("half")
        _ = 1 / 0
    assert (out / "content").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_export_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "shard-00001.safetensors").write_text("half")
    write_export(tmp_path / "out", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["content", MARKER]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
    ],
)
def test_a_full_disk_is_a_storage_error_and_leaves_nothing(
    error: Exception, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match="No space left on device") as caught:
        with publish_folder(tmp_path / "out") as folder:
            (folder / "content").write_text("half")
            raise error
    assert "GiB are free" in caught.value.expected and "free some space" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_the_system_refuses(tmp_path: Path) -> None:
    with files_up_to(10_000), pytest.raises(StorageError, match="File too large"):
        with publish_folder(tmp_path / "out") as folder:
            save_file({"weight": torch.zeros(10_000)}, folder / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_errors_of_other_kinds_pass_through(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError), publish_folder(tmp_path / "out"):
        raise SafetensorError("a tensor of a strange dtype")
