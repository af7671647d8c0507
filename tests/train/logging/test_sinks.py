"""Choosing sinks."""

from typing import get_args

import pytest
from pydantic import ValidationError

from hecate.train.logging import SINKS, LoggingConfig, Run, open_sinks
from hecate.train.logging.config import SinkName
from hecate.train.logging.console import ConsoleSink
from hecate.train.logging.jsonl import JsonlSink


def test_every_name_has_a_class_and_every_class_a_name():
    assert set(SINKS) == set(get_args(SinkName))
    assert LoggingConfig().sinks == tuple(SINKS)


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
    assert [type(sink) for sink in sinks] == [ConsoleSink, JsonlSink]
    assert not (tmp_path / "wandb").exists()


def test_a_sink_that_fails_to_open_closes_those_before_it(tmp_path, monkeypatch):
    closed = []

    class First(JsonlSink):
        def close(self) -> None:
            closed.append("first")
            super().close()

    class Fails(JsonlSink):
        @classmethod
        def open(cls, config, run):
            raise OSError("no")

    monkeypatch.setitem(SINKS, "jsonl", First)
    monkeypatch.setitem(SINKS, "console", Fails)
    with pytest.raises(OSError, match="no"):
        open_sinks(LoggingConfig(sinks=("jsonl", "console")), Run(tmp_path, "toy", 10), rank=0)
    assert closed == ["first"]


def test_an_unknown_sink_is_refused():
    with pytest.raises(ValidationError, match="'console', 'jsonl' or 'wandb'"):
        LoggingConfig(sinks=("tensorboard",))
