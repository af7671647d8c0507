"""All of ``hecate bench gittins``, as small as it gets, on the real engine too."""

import math

import pytest

from hecate.bench.gittins.prewarm.figures import Extent
from hecate.bench.gittins.run import Pace, measure
from hecate.bench.report import BenchOptions

WARM = Extent(24, 8, 10, 1, (0.9,), (8,), (20,))
PACE = Pace(count=12, seeds=1, past=20, loads=(0.9,), real=4, rounds=1, serial=200, warm=WARM)
PROMISED = {
    "mean_cut_vs_fcfs",
    "p95_cut_vs_fcfs",
    "gap_to_oracle",
    "vs_las",
    "vs_sjf",
    "real_mean_cut_vs_fcfs",
    "sim_error",
    "lora_hit",
    "kv_hit",
    "tick_ms_1000",
}


@pytest.mark.slow
def test_every_figure_is_there() -> None:
    said: list[str] = []
    at_s = [float(second) for second in range(40)]
    report = measure(BenchOptions(quick=True), PACE, {"even": at_s}, said.append)
    assert report.summary.keys() >= PROMISED
    assert all(math.isfinite(value) for value in report.summary.values())
    of = {row["arrivals"] for row in report.rows}
    assert of == {"poisson", "even", "engine", "as simulated", "M/G/1", "warmed"}
    judged = [row for row in report.rows if row["arrivals"] in ("poisson", "even")]
    assert len({row["policy"] for row in judged}) * 2 == len(judged) == 2 * 9
    assert 0 < report.summary["lora_hit"] <= 1 and 0 < report.summary["kv_hit"] <= 1
    assert 0 < report.summary["tick_ms_1000"] < 1000
