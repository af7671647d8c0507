"""metrics.jsonl: complete lines, resumable, readable by any JSON parser."""

import errno
import json
import math
import os

import pytest
from disks import small_disk

from hecate.errors import StorageError
from hecate.logging.jsonl import JsonlSink


def _records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write(path, steps, resumed_step=0):
    sink = JsonlSink(path, resumed_step=resumed_step, clock=lambda: 12.3456)
    for step in steps:
        sink.log(step, {"loss": 1.0 / step})
    sink.close()


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    sink = JsonlSink(tmp_path / "run" / "metrics.jsonl", clock=lambda: 12.3456)
    sink.log(10, {"loss": 2.5, "load/tokens_per_expert": [[1, 2], [3, 0]]})
    assert _records(tmp_path / "run" / "metrics.jsonl") == [
        {"step": 10, "time_s": 12.346, "loss": 2.5, "load/tokens_per_expert": [[1, 2], [3, 0]]}
    ]
    sink.close()
    sink.close()


def test_a_resumed_run_repeats_no_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write(path, [10, 20, 30, 40])
    _write(path, [30, 40], resumed_step=25)
    assert [record["step"] for record in _records(path)] == [10, 20, 30, 40]


def test_a_new_run_starts_the_file_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write(path, [10, 20])
    _write(path, [5])
    assert [record["step"] for record in _records(path)] == [5]


def test_a_line_cut_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write(path, [10, 20])
    whole = path.read_text()
    for cut in (whole[:-9], whole[:-1]):
        path.write_text(cut)
        _write(path, [20], resumed_step=20)
        assert [record["step"] for record in _records(path)] == [10, 20]


def test_numbers_that_json_lacks_become_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.log(1, {"loss": math.nan, "load": [math.inf, 1.0]})
    sink.close()
    assert "NaN" not in path.read_text()
    (record,) = _records(path)
    assert record["loss"] is None
    assert record["load"] == [None, 1.0]


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path):
    blocker = tmp_path / "run"
    blocker.write_text("a file where the run folder should be")
    with pytest.raises(StorageError, match="metrics cannot be written to .*metrics.jsonl"):
        JsonlSink(blocker / "metrics.jsonl")


def test_a_full_disk_leaves_whole_lines_and_is_one_message(tmp_path):
    with small_disk(tmp_path / "disk", pages=8) as disk:
        path = disk.folder / "metrics.jsonl"
        sink = JsonlSink(path)
        sink.log(1, {"load": [1.0] * 100})
        disk.fill()
        step = 1
        with pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)):
            while True:
                step += 1
                sink.log(step, {"load": [1.0] * 100})
        assert [record["step"] for record in _records(path)] == list(range(1, step))
        disk.empty()
        sink.log(99, {"loss": 1.0})
        sink.close()
        assert [record["step"] for record in _records(path)] == [*range(1, step), 99]
