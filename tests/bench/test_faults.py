"""A run whose ranks are killed, small: it goes on, and the report adds up."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from toy_workload import TOY, text_file

from hecate.bench.faults import IN_PLACE, Pace, measure
from hecate.data import DataConfig


@pytest.mark.slow
def test_ranks_are_killed_and_the_run_goes_on(tmp_path: Path) -> None:
    report = measure(
        Pace(failure_every_s=5.0, run_s={"in_place": 9.0}, stall_s=4.0),
        TOY,
        "float32",
        Console(file=io.StringIO()),
        ways=(IN_PLACE,),
        data=DataConfig(path=str(text_file(tmp_path)), cache=str(tmp_path / "cache")),
    )
    (row,) = report.rows
    assert row["status"] == "ok" and row["failures"] == 1
    assert 0 < float(str(row["effective_time_ratio"])) < 1
    assert set(row["phases_s"]) == {"leave", "fork", "join", "prepare", "step"}
    assert set(report.summary) >= {"effective_time_ratio", "checkpoint_stall", "back_s_in_place"}
