"""Choosing sinks."""

import json
import logging
import subprocess
import sys
from types import SimpleNamespace
from typing import get_args

import pytest
from disks import small_disk
from pydantic import ValidationError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hecate.errors import StorageError
from hecate.logging import SINKS, LoggingConfig, Run, open_sinks
from hecate.logging.config import SinkName
from hecate.logging.console import ConsoleSink
from hecate.logging.jsonl import JsonlSink
from hecate.logging.sinks import sink_class


def test_every_name_has_a_class_and_every_class_a_name():
    assert set(SINKS) == set(get_args(SinkName))
    assert LoggingConfig().sinks == ("console", "jsonl", "wandb")
    assert [sink_class(name).__name__ for name in SINKS] == [
        "ConsoleSink",
        "JsonlSink",
        "WandbSink",
        "TensorBoardSink",
    ]


def test_only_rank_0_has_sinks(tmp_path):
    config = LoggingConfig(sinks=("jsonl",))
    assert open_sinks(config, Run(tmp_path / "run", "toy", 10), rank=1) == []
    assert not (tmp_path / "run").exists()
    (sink,) = open_sinks(config, Run(tmp_path / "run", "toy", 10), rank=0)
    sink.log(1, {"loss": 1.0})
    sink.close()
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 1


def test_wandb_off_leaves_it_out(tmp_path):
    sinks = open_sinks(LoggingConfig(wandb_mode="off"), Run(tmp_path, "toy", 10), rank=0)
    for sink in sinks:
        sink.close()
    assert [type(sink.sink) for sink in sinks] == [ConsoleSink, JsonlSink]
    assert not (tmp_path / "wandb").exists()


class First(JsonlSink):
    closed = 0

    def close(self) -> None:
        First.closed += 1
        super().close()


class Fails(JsonlSink):
    @classmethod
    def open(cls, config, run):
        raise StorageError("no")


def test_a_sink_that_fails_to_open_closes_those_before_it(tmp_path, monkeypatch):
    monkeypatch.setitem(SINKS, "jsonl", f"{__name__}:First")
    monkeypatch.setitem(SINKS, "console", f"{__name__}:Fails")
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(First=First, Fails=Fails))
    with pytest.raises(StorageError, match="no"):
        open_sinks(LoggingConfig(sinks=("jsonl", "console")), Run(tmp_path, "toy", 10), rank=0)
    assert First.closed == 1


def test_an_unknown_sink_is_refused():
    with pytest.raises(ValidationError, match="'console', 'jsonl', 'wandb' or 'tensorboard'"):
        LoggingConfig(sinks=("mlflow",))


WITHOUT = """
import sys, logging
sys.modules.update(dict.fromkeys({missing}))  # importing them raises ModuleNotFoundError
from pathlib import Path
from hecate.logging import LoggingConfig, Run, open_sinks
sinks = open_sinks(
    LoggingConfig(sinks=("jsonl", "wandb", "tensorboard")), Run(Path({folder!r}), "toy", 10), rank=0
)
for sink in sinks:
    sink.log(1, {{"loss": 1.0}})
    sink.close()
"""


def test_packages_that_are_missing_are_said_once_and_left_out(tmp_path):
    code = WITHOUT.format(missing=["wandb", "tensorboard"], folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wandb, tensorboard = done.stderr.splitlines()
    assert wandb.startswith("wandb is not installed") and "pip install wandb" in wandb
    assert tensorboard.startswith("tensorboard is not installed")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_full_disk_ends_no_sink_and_is_said_once_by_each(tmp_path, caplog):
    values = {"loss": 1.0, "load/tokens_per_expert": [[1.0] * 50] * 4}
    with small_disk(tmp_path / "disk", pages=32) as disk, caplog.at_level(logging.WARNING):
        config = LoggingConfig(sinks=("jsonl", "tensorboard"))
        sinks = open_sinks(config, Run(disk.folder, "toy", 100), rank=0)
        for step in range(1, 100):
            if step == 3:
                disk.fill()
            if step == 90:
                disk.empty()
            for sink in sinks:
                sink.log(step, values)
        for sink in sinks:
            sink.close()
        lines = (disk.folder / "metrics.jsonl").read_text().splitlines()
        events = EventAccumulator(str(disk.folder / "tensorboard")).Reload()
    for steps in (
        [json.loads(line)["step"] for line in lines],
        [event.step for event in events.Scalars("train/loss")],
    ):
        assert steps[:2] == [1, 2] and steps[-10:] == list(range(90, 100)) and len(steps) < 60
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all("No space left on device" in each for each in said)
    assert sorted(each.split("and ")[-1] for each in said) == [
        "jsonl may lack steps",
        "tensorboard may lack steps",
    ]
