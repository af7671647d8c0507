"""The whole comparison on a toy: interleaved rounds, missing and failing peers, the report."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from toy_workload import TOY, text_file

from hecate.bench import document, render
from hecate.bench.crew import ContenderError
from hecate.bench.peers import CONTENDERS, OURS, Entry, Job
from hecate.bench.rounds import Pace
from hecate.bench.train import QUICK, WHOLE, measure, report_of
from hecate.bench.turns import Turns
from hecate.bench.workloads import TWO_RANKS
from hecate.data import DataConfig
from hecate.mesh import ParallelContext

PACE = Pace(
    warm_up_steps=1,
    turn_s=60,
    least_rounds=3,
    most_rounds=3,
    most_turn_steps=2,
    total_s=1,
    trial_runs=1,
)


def gives_up(job: Job, ctx: ParallelContext, turns: Turns) -> None:
    """Warms up, and fails in its first timed turn."""
    turns.ready()
    turns.step_done(1.0)
    raise RuntimeError("out of patience")


def raises(job: Job, ctx: ParallelContext, turns: Turns) -> None:
    raise RuntimeError("no start")


def data_in(folder: Path) -> DataConfig:
    return DataConfig(path=str(text_file(folder)), cache=str(folder / "cache"))


def test_peers_that_are_missing_or_fail_have_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    log = io.StringIO()
    contenders = {
        OURS: CONTENDERS[OURS],
        "plain": CONTENDERS["plain"],
        "absent": Entry("Absent", raises, requires=("no_such_package",)),
        "fails": Entry("Fails", gives_up),
        "never": Entry("Never", raises),
    }
    stages = measure(
        (TOY,),
        (TWO_RANKS,),
        contenders,
        PACE,
        dtype="float32",
        console=Console(file=log),
        data=data_in(tmp_path),
    )
    report = report_of(stages, PACE, dtype="float32", load_before=0.0)
    rows = {str(row["contender"]): row for row in report.rows}
    assert "not installed: pip install" in str(rows["Absent"]["status"])
    assert rows["Fails"]["status"] == "failed: out of patience"
    assert rows["Never"]["status"] == "failed: no start"
    assert rows["hecate"]["status"] == rows["transformers + AdamW"]["status"] == "ok"
    plain = rows["transformers + AdamW"]
    assert len(plain["tokens_per_s_rounds"]) == len(plain["ours_over_it_rounds"]) == 3  # type: ignore[arg-type]
    assert int(rows["hecate"]["steps"]) >= int(plain["steps"]) == 1 + 3 * 2  # type: ignore[arg-type]
    assert rows["transformers + AdamW"]["same_curve"] is True
    assert set(report.summary) == {
        "toy_2p_tokens_per_s",
        "toy_2p_vs_plain",
        "toy_2p_vs_best_peer",
        "vs_best_peer_2p",
    }
    assert "round 3" in log.getvalue()

    content = json.loads(json.dumps(document(report, commit="", machine={})))
    assert content["settings"]["dtype"] == "float32"
    table = io.StringIO()
    render(report, Console(file=table, width=220))
    assert table.getvalue().rstrip().splitlines()[-1].startswith("vs_best_peer_2p")


def test_a_failure_of_ours_ends_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(ContenderError, match="hecate failed to be built"):
        measure(
            (TOY,),
            (TWO_RANKS,),
            {OURS: Entry("hecate", raises)},
            PACE,
            dtype="float32",
            console=Console(file=io.StringIO()),
            data=data_in(tmp_path),
        )


@pytest.mark.parametrize("pace", [QUICK, WHOLE])
def test_a_pace_prepares_enough_steps(pace: Pace) -> None:
    assert pace.steps_of_a_turn(1e-9) == pace.most_turn_steps
    assert pace.steps_of_a_turn(1e9) == 1
    one_peer = pace.most_rounds * pace.most_turn_steps
    assert pace.most_steps(3) == pace.warm_up_steps + 3 * one_peer
    assert pace.most_steps(0) == pace.most_steps(1)
    assert pace.least_rounds <= pace.most_rounds


def test_without_peers_our_trainer_is_measured_alone(tmp_path: Path) -> None:
    (stage,) = measure(
        (TOY,),
        (TWO_RANKS,),
        {OURS: CONTENDERS[OURS], "absent": Entry("Absent", raises, requires=("no_such_package",))},
        PACE,
        dtype="float32",
        console=Console(file=io.StringIO()),
        data=data_in(tmp_path),
    )
    assert len(stage[0].turns) == PACE.least_rounds
    assert stage[1].problem
