"""The experts' benchmark on two real ranks with a model of milliseconds."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from toy_workload import TOY, text_file

from hecate.bench.fssdp import TRACES, measure, report_of
from hecate.bench.report import document
from hecate.bench.standings import Pace, Setting
from hecate.bench.strategies import CEILING, DEEPSPEED, FSDP2, OURS
from hecate.data import DataConfig

PACE = Pace(
    skipped=20,
    warm_up=1,
    stable_rounds=2,
    moving_rounds=1,
    row_s=0,
    most_rounds=1,
    recorded=4,
    peers_every=5,
    repeats=2,
)
NAMES = (OURS, "expert_parallel", "fsdp", FSDP2, DEEPSPEED, CEILING)


def test_every_figure_is_there_and_loads_are_as_said(tmp_path: Path):
    setting = Setting(
        models=(TOY,),
        traces={"toy": TRACES},
        recorded=TOY,
        names=NAMES,
        dtype="float32",
        chunk_bytes=(1 << 12,),
        data=DataConfig(path=str(text_file(tmp_path)), cache=str(tmp_path / "cache")),
    )
    found = measure(setting, PACE, Console(file=io.StringIO()))
    report = report_of(found, setting, PACE, load_before=0.0)
    assert set(report.summary) == {
        "ceiling_share_real",
        "ceiling_share_hot",
        "ceiling_share_rotating",
        "speedup_vs_ep_hot",
        "balanced_vs_ep",
        "min_margin_stable",
        "min_margin_moving",
        "remat_slowdown",
        "remat_extra_layers",
        "sparse_gather_vs_bound",
        "hidden_gather_fraction",
    }
    assert all(math.isfinite(value) for value in report.summary.values())
    assert report.summary["remat_extra_layers"] == 1
    json.dumps(document(report, commit="", machine={}))
    assert len(report.rows) == len(TRACES) * len(NAMES)
    by_trace = {standing.trace: standing for standing in found.standings}
    assert [by_trace[name].stable for name in TRACES] == [True] * 3 + [False] * 3 + [True, False]
    for trace, standing in by_trace.items():
        ceiling = standing.courses[CEILING]
        assert max(ceiling.imbalances) < 1.02, trace
        ep = standing.courses["expert_parallel"]
        assert sum(ep.imbalances) / len(ep.imbalances) == pytest.approx(standing.given_imbalance)
        assert not any(ep.copies), trace
        # steps of a round follow each other, and everyone takes the same ones
        assert ep.steps == standing.courses[OURS].steps == ceiling.steps
        for peer in (FSDP2, DEEPSPEED):
            course = standing.courses[peer]
            assert course.problem or set(course.steps) <= set(ceiling.steps), trace
    assert by_trace["hot_1.9"].given_imbalance == pytest.approx(1.9, abs=0.02)
    assert all(copies > 0 for copies in by_trace["balanced"].courses["fsdp"].copies)
    assert len(by_trace["rotating"].courses[CEILING].steps) == 10
