"""Entries are built once, by real processes at the same time, and survive being killed."""

import multiprocessing
import os
import resource
import signal
import time

import pytest
from ranks import run_ranks

from hecate.data.cache import build_once, write_atomically
from hecate.data.progress import quiet
from hecate.errors import StorageError

PROCESSES = multiprocessing.get_context("forkserver")


def whole(entry):
    return (entry / "words").is_file() and (entry / "words").stat().st_size == 5


def build(entry, body, progress=quiet):
    build_once(entry, body, whole=whole, what="building", progress=progress)


def write_words(folder, report):
    (folder / "words").write_text("whole")
    report(5, 5)


def test_builds_what_is_not_there_and_leaves_alone_what_is(tmp_path):
    entry = tmp_path / "a" / "b" / "entry"
    build(entry, write_words)
    assert [path.name for path in entry.iterdir()] == ["words"]

    def never(folder, report):
        raise AssertionError("built twice")

    build(entry, never)


def test_a_damaged_entry_is_built_anew(tmp_path):
    entry = tmp_path / "entry"
    build(entry, write_words)
    (entry / "words").write_text("who")
    (entry / "stray").write_text("")
    build(entry, write_words)
    assert [path.name for path in entry.iterdir()] == ["words"]
    assert whole(entry)


def test_a_builder_that_fails_leaves_nothing(tmp_path):
    def fail(folder, report):
        (folder / "words").write_text("whole")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        build(tmp_path / "entry", fail)
    assert [path.name for path in tmp_path.iterdir()] == [".entry.lock"]


def build_slowly(ctx, entry, log):
    heard = []

    def body(folder, report):
        with open(log, "a") as file:
            file.write(f"{ctx.rank}\n")
        report(1, 2)
        time.sleep(0.5)
        write_words(folder, report)

    build(entry, body, lambda what, done, total: heard.append((done, total)))
    assert whole(entry)
    return heard


def test_of_processes_that_come_together_one_builds_and_all_hear_of_it(tmp_path):
    entry, log = tmp_path / "entry", tmp_path / "log"
    heard = run_ranks(build_slowly, 3, entry, log)
    assert len(log.read_text().split()) == 1
    assert all((1, 2) in reports for reports in heard)


def build_and_hang(entry, begun):
    def body(folder, report):
        (folder / "words").write_text("who")
        report(3, 5)
        begun.set()
        time.sleep(60)

    build(entry, body)


def test_a_killed_builder_leaves_no_lock_and_nothing_that_is_taken_for_an_entry(tmp_path):
    entry, begun = tmp_path / "entry", PROCESSES.Event()
    builder = PROCESSES.Process(target=build_and_hang, args=(entry, begun))
    builder.start()
    assert begun.wait(30)
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    assert not entry.exists()
    assert list(tmp_path.glob(".entry.partial-*"))
    started = time.monotonic()
    build(entry, write_words)
    assert time.monotonic() - started < 5
    assert whole(entry)
    assert not list(tmp_path.glob(".entry.partial-*"))


def fill_the_disk(ctx, entry):
    """No file of this process may grow past 1000 bytes: what a full disk does, without one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        build(entry, lambda folder, report: (folder / "words").write_bytes(b"x" * 5000))
    except StorageError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    return ""


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path):
    (message,) = run_ranks(fill_the_disk, 1, tmp_path / "entry")
    assert str(tmp_path) in message
    assert "data.cache" in message
    assert [path.name for path in tmp_path.iterdir()] == [".entry.lock"]


def test_a_cache_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        build(tmp_path / "file" / "entry", write_words)
    with pytest.raises(StorageError, match="file"):
        write_atomically(tmp_path / "file" / "small", b"x")


def test_small_files_are_written_whole(tmp_path):
    write_atomically(tmp_path / "folder" / "small", b"one")
    write_atomically(tmp_path / "folder" / "small", b"two")
    assert [path.read_bytes() for path in (tmp_path / "folder").iterdir()] == [b"two"]
