"""The curves' benchmark on real processes with a model of milliseconds."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from toy_workload import TOY, text_file

from hecate.bench.curves import (
    POLICIES,
    Run,
    Setting,
    measure,
    other_orders,
    report_of,
    setting_of,
)
from hecate.bench.report import BenchOptions, document
from hecate.data import DataConfig
from hecate.errors import ConfigError


def test_policies_train_what_a_single_process_trains(tmp_path: Path):
    setting = Setting(
        (
            Run("fp64", "float64", 0.0, 12, ("fssdp", "swapping", "fsdp"), 1, 12, ("fssdp",), 6),
            Run("bf16", "bfloat16", 0.01, 3, ("fssdp",), 2, 4),
        ),
        workload=TOY,
        schedule_steps=12,
        data=DataConfig(path=str(text_file(tmp_path)), cache=str(tmp_path / "cache")),
    )
    comparisons = measure(setting, Console(file=io.StringIO()))
    report = report_of(comparisons, setting, load_before=0.0)
    assert set(report.summary) == {
        "worst_difference",
        "tolerance",
        "share_of_tolerance",
        "worst_difference_fp64",
        "tolerance_fp64",
        "share_of_tolerance_fp64",
        "bit_identical_repeats",
    }
    assert report.summary["worst_difference_fp64"] < 1e-7
    assert report.summary["worst_difference"] < 1e-2
    assert report.summary["bit_identical_repeats"] == 1.0
    json.dumps(document(report, commit="", machine={}))
    fp64 = comparisons[0]
    assert len(fp64.reference.losses) == 12
    assert fp64.reference.losses[-1] < fp64.reference.losses[0]
    # sums in another order, and nothing else: other bits, the same curve
    (control,) = fp64.controls.values()
    assert control.losses != fp64.reference.losses
    assert min(sum(fp64.curves[name].copies) for name in ("fssdp", "fsdp")) > 0
    assert sum(fp64.curves["swapping"].moves) > 0


def test_whole_and_quick_take_known_policies_and_all_exact_ones_are_there():
    whole, quick = (setting_of(BenchOptions(quick=quick)) for quick in (False, True))
    for setting in (whole, quick):
        for run in setting.runs:
            assert set(run.repeated) <= set(run.policies) <= set(POLICIES)
            assert run.steps <= run.control_steps <= setting.schedule_steps
    assert whole.runs[0].policies == tuple(POLICIES)
    assert whole.runs[0].steps == 200
    assert {config.policy for config in POLICIES.values()} == {
        "fssdp",
        "expert_parallel",
        "shadowing",
        "swapping",
        "replication",
        "fsdp",
    }


@pytest.mark.parametrize("quick", [False, True])
def test_only_some_policies_are_trained_on_request(quick):
    setting = setting_of(BenchOptions(quick=quick, only=("shadowing",)))
    assert {run.policies for run in setting.runs} == {("shadowing",)}
    assert {run.repeated for run in setting.runs} == {("shadowing",), ()}


def test_an_unknown_policy_is_refused_before_anything_is_trained():
    with pytest.raises(ConfigError, match="no such way to place experts") as caught:
        setting_of(BenchOptions(only=("shadowin",)))
    assert caught.value.fix == "did you mean shadowing?"


def test_orders_of_rows_are_different_orders_of_the_same_rows():
    assert other_orders(5, cut=False) == {
        "rows backwards": ((4, 3, 2, 1, 0),),
        "odd rows first": ((1, 3, 0, 2, 4),),
        "second half first": ((2, 3, 4, 0, 1),),
    }
    assert other_orders(5, cut=True)["half after half"] == ((0, 1), (2, 3, 4))
