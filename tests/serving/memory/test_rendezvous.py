"""Processes find each other's files, and whoever is killed leaves nothing in the way."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from holder import beside

from serving.memory.rendezvous import meeting


def _found(folder: Path) -> int | None:
    """The number of the file that a meeting finds."""
    with meeting(folder, "key") as place:
        file = place.find(lambda file: os.pread(file, 9, 0) == b"here")
    if file is None:
        return None
    number = os.fstat(file).st_ino
    os.close(file)
    return number


def test_a_file_lives_for_as_long_as_anyone_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    assert _found(folder) is None
    with beside("holder", "announces", folder) as first:
        found, number = first.says()
        assert not found
        with beside("holder", "announces", folder) as second:
            assert second.says() == [True, number]
            first.kill()
            assert _found(folder) == number
            assert len((folder / "key").read_text().splitlines()) == 2
    assert _found(folder) is None


def test_a_file_that_does_not_fit_is_passed_over(tmp_path: Path) -> None:
    with beside("holder", "announces", tmp_path / "node") as other:
        other.says()
        with meeting(tmp_path / "node", "key") as place:
            assert place.find(lambda file: False) is None


def test_others_wait_for_the_maker_and_one_that_is_killed_stops_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    with beside("holder", "dawdles", folder) as maker:
        assert maker.says() == "met"
        came: list[int | None] = []
        waiting = threading.Thread(target=lambda: came.append(_found(folder)))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        maker.kill()
        waiting.join(10)
        assert came == [None]


def test_lists_of_the_dead_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    with beside("holder", "announces", folder) as other:
        other.says()
        (folder / "old").write_text("4194305 3\n")  # above any process's number
        (folder / "spoilt").write_text("x\ny z\n")
        with meeting(folder, "another"):
            assert {path.name for path in folder.iterdir()} == {"another", "key"}


@pytest.mark.parametrize("mode", [0o755, 0o770])
def test_a_folder_that_others_may_write_to_or_read_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node").chmod(mode)
    with pytest.raises(PermissionError, match="is not this user's alone"):
        with meeting(tmp_path / "node", "key"):
            pass


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError), meeting(tmp_path / "file" / "node", "key"):
        pass
