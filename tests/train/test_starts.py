"""starts.jsonl: a line a start, whatever a kill left of the one before."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from hecate.errors import StorageError
from hecate.report.starts import read_starts
from hecate.train.starts import FILE, environment, record_start


def start(folder: Path, step: int, ranks: int = 4) -> None:
    nodes = tuple(rank // 2 for rank in range(ranks))
    record_start(folder, step, node_of_rank=nodes, device=torch.device("cpu"), time_s=7.5)


def test_what_is_recorded_is_what_a_report_reads(tmp_path: Path) -> None:
    start(tmp_path, 0)
    start(tmp_path, 100, ranks=6)
    start(tmp_path, 100)
    starts, damage = read_starts(tmp_path / FILE)
    assert [(each.step, each.num_ranks, each.num_nodes) for each in starts] == [
        (0, 4, 2),
        (100, 6, 3),
        (100, 4, 2),
    ]
    assert starts[0].time_s == 7.5 and not damage.cut
    environment = starts[0].environment
    assert environment["device"] == "cpu" and environment["torch"] == torch.__version__
    assert environment["threads of a rank"] == str(torch.get_num_threads())


def test_a_new_run_starts_the_file_anew(tmp_path: Path) -> None:
    start(tmp_path, 0)
    start(tmp_path, 50)
    start(tmp_path, 0)
    assert [each.step for each in read_starts(tmp_path / FILE)[0]] == [0]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_what_a_kill_left_unfinished_goes(tmp_path: Path) -> None:
    start(tmp_path, 0)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step":50,"ti')
    start(tmp_path, 60)
    lines = (tmp_path / FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 60]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        start(tmp_path / "file", 0)


def test_the_commit_of_the_folder_is_known(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "commit" not in environment(torch.device("cpu"))

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *who, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    (tmp_path / "file").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD")
    assert environment(torch.device("cpu"))["commit"] == head
    (tmp_path / "file").write_text("2")
    assert environment(torch.device("cpu"))["commit"] == f"{head} with changes"
