"""The simulator's benchmark on two real ranks with models of milliseconds."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from toy_workload import TOY, text_file

from hecate.bench import BENCHES
from hecate.bench.report import document
from hecate.bench.simulator import (
    QUICK,
    WHOLE,
    Scene,
    Setting,
    bench_simulator,
    compare,
    sizes_of,
)
from hecate.data import DataConfig
from hecate.models.build import hf_config, meta_model

POLICIES = ("expert_parallel", "fssdp", "shadowing", "fsdp", "force_balanced")


def test_it_is_known_by_name() -> None:
    assert BENCHES["simulator"] is bench_simulator


@pytest.mark.parametrize("setting", [QUICK, WHOLE])
def test_twelve_runs_or_more_are_held_out(setting: Setting) -> None:
    runs = {(s.work.name, s.trace, policy) for s in setting.scenes for policy in s.policies}
    assert len(runs) == sum(len(s.policies) for s in setting.scenes) >= 12


def test_sizes_are_those_of_the_model() -> None:
    sizes = sizes_of(TOY)
    model = meta_model(hf_config(TOY.model, vocab_size=TOY.vocab_size))
    experts = sizes.layers * sizes.experts * sizes.expert_parameters
    assert sum(p.numel() for p in model.parameters()) == sizes.dense_parameters + experts


def test_runs_are_timed_and_simulated(tmp_path: Path) -> None:
    data = DataConfig(path=str(text_file(tmp_path)), cache=str(tmp_path / "cache"))
    setting = Setting(
        (Scene(TOY, "hot_1.9", POLICIES, 2), Scene(TOY, "rotating", POLICIES[:2], 1)),
        repeats=2,
        data=data,
    )
    report = compare(setting, Console(file=io.StringIO()), load_before=0.0)
    assert set(report.summary) == {
        "runs",
        "worst_error",
        "median_error",
        "within_15_percent",
    }
    assert report.summary["runs"] == len(report.rows) == 7
    assert all(math.isfinite(value) for value in report.summary.values())
    for row in report.rows:
        assert row["error"] == pytest.approx(row["simulated_ms"] / row["measured_ms"] - 1)
        assert row["within"] == (abs(row["error"]) <= 0.15)
        parts = row["simulated_parts_ms"]
        assert all(parts[name] > 0 for name in ("attention", "experts", "ends", "optimizer"))
    json.dumps(document(report, commit="", machine={}))
