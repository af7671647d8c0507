"""starts.jsonl, as far as it can be read."""

from pathlib import Path

from run_folders import write_starts

from hecate.report.starts import RECOVERIES, read_recoveries, read_starts
from hecate.train.elastic.recoveries import Recovery, record_recovery


def test_starts_are_read_in_order(tmp_path):
    write_starts(tmp_path, (0, 100.0, 2), (50, 900.0, 4))
    starts, damage = read_starts(tmp_path / "starts.jsonl")
    assert [(start.step, start.time_s, start.num_ranks) for start in starts] == [
        (0, 100.0, 2),
        (50, 900.0, 4),
    ]
    assert starts[0].environment == {"cores": "2"} and not damage.cut


def test_what_is_no_start_is_passed_over(tmp_path):
    path = tmp_path / "starts.jsonl"
    path.write_text('{"step":0,"environment":7,"ranks":"x"}\n[]\n{"step":1')
    starts, damage = read_starts(path)
    (start,) = starts
    assert (start.num_ranks, start.time_s, start.environment) == (0, 0.0, {})
    assert damage.unreadable == 1 and damage.cut


def test_there_may_be_no_file(tmp_path):
    assert read_starts(tmp_path / "starts.jsonl")[0] == ()


def test_recoveries_are_read_as_a_job_wrote_them(tmp_path: Path) -> None:
    seconds = {"leave": 0.5, "fork": 0.25}
    written = Recovery(50, 1.8e9, "rank 1 was ended by SIGKILL", 57, 3, 2, seconds)
    record_recovery(tmp_path, written)
    path = tmp_path / RECOVERIES
    with path.open("a") as file:
        file.write('[]\n{"step": 1}\n{"step": 60, "ra')
    (read,) = read_recoveries(path)
    assert (read.step, read.cause, read.at_step) == (50, written.cause, 57)
    assert (read.ranks_before, read.ranks_after, read.seconds) == (3, 2, seconds)
    assert read_recoveries(tmp_path / "none") == ()
