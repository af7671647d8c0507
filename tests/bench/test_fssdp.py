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
from hecate.bench.standings import Part, Setting
from hecate.bench.strategies import CEILING, DEEPSPEED, FSDP2, OURS
from hecate.data import DataConfig

PEER_TRACES = ("balanced", "rotating", "one_hot")
NAMES = (OURS, "expert_parallel", "fsdp", FSDP2, DEEPSPEED, CEILING)


def test_every_figure_is_there_and_loads_are_as_said(tmp_path: Path):
    part = Part(
        TOY,
        TRACES,
        NAMES,
        peer_traces=PEER_TRACES,
        stable_rounds=2,
        moving_rounds=1,
        peers_every=2,
    )
    setting = Setting(
        parts=(part,),
        recorded=TOY,
        skipped=20,
        warm_up=1,
        repeats=2,
        dtype="float32",
        chunk_bytes=(1 << 12,),
        data=DataConfig(path=str(text_file(tmp_path)), cache=str(tmp_path / "cache")),
    )
    found = measure(setting, Console(file=io.StringIO()))
    report = report_of(found, setting, load_before=0.0)
    assert set(report.summary) == {
        "ceiling_share_real",
        "ceiling_share_hot",
        "ceiling_share_rotating",
        "speedup_vs_ep_hot",
        "balanced_vs_ep",
        "min_margin_stable",
        "min_margin_moving",
        "ceiling_margin_moving",
        "remat_slowdown",
        "remat_extra_layers",
        "sparse_gather_vs_bound",
        "hidden_gather_fraction",
    }
    assert all(math.isfinite(value) for value in report.summary.values())
    assert report.summary["remat_extra_layers"] == 1
    json.dumps(document(report, commit="", machine={}))
    assert len(report.rows) == len(TRACES) * (len(NAMES) - 2) + 2 * len(PEER_TRACES)
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
            assert (peer in standing.courses) == (trace in PEER_TRACES)
    assert by_trace["hot_1.9"].given_imbalance == pytest.approx(1.9, abs=0.02)
    assert all(copies > 0 for copies in by_trace["balanced"].courses["fsdp"].copies)
    # every second round: one of two steps, but all ten of the only period
    assert by_trace["rotating"].courses[FSDP2].steps == tuple(range(30, 40))
    assert by_trace["balanced"].courses[FSDP2].steps == (30,)
    assert by_trace["balanced"].courses[CEILING].steps == (30, 31)
