"""Instances have the published shapes, and arrivals the rates that are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from hecate.bench.gittins.classes import (
    PUBLISHED_OUTPUT_TOKEN_S,
    PUBLISHED_PROMPT_TOKEN_S,
    SHAPES,
    Shape,
)
from hecate.bench.gittins.workload import Instances, Scale, history, jobs, poisson, resampled
from serving.scheduling.applications.traces import Trace


def _published_s(trace: Trace) -> float:
    calls = [call for run in trace.runs for call in run.calls]
    prompts = sum(call.prompt_tokens for call in calls)
    outputs = sum(call.output_tokens for call in calls)
    tools_s = sum(run.seconds for run in trace.runs)
    return tools_s + prompts * PUBLISHED_PROMPT_TOKEN_S + outputs * PUBLISHED_OUTPUT_TOKEN_S


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_totals_are_those_of_the_published_graphs(shape: Shape) -> None:
    instances = Instances(np.random.default_rng(0), Scale())
    totals_s = [_published_s(instances.draw(shape)) for _ in range(400)]
    mean_s, median_s, late_s = shape.published_s
    assert np.mean(totals_s) == pytest.approx(mean_s, rel=0.12)
    assert np.median(totals_s) == pytest.approx(median_s, rel=0.25)
    assert np.percentile(totals_s, 95) == pytest.approx(late_s, rel=0.15)


def test_a_list_is_as_long_as_it_has_entries_and_each_entry_is_verified() -> None:
    (shape,) = [shape for shape in SHAPES if shape.name == "factool_kbqa"]
    instances = Instances(np.random.default_rng(1), Scale())
    drawn = [instances.draw(shape).runs for _ in range(200)]
    entries = [len(runs[1].calls) for runs in drawn]
    assert entries == [len(runs[3].calls) for runs in drawn]
    lengths = [runs[0].calls[0].output_tokens for runs in drawn]
    assert np.corrcoef(entries, lengths)[0, 1] > 0.5


def test_the_mix_is_exact_and_nothing_of_it_is_in_the_history() -> None:
    drawn = jobs(np.random.default_rng(2), Scale(), 200)
    assert len({job.instance for job in drawn}) == 200
    for shape in SHAPES:
        assert sum(job.name == shape.name for job in drawn) == 2 * shape.percent
    past = history(np.random.default_rng(3), Scale(), 5)
    seen = {trace for traces in past.values() for trace in traces}
    assert not seen & {job.plan for job in drawn if len(job.plan.runs) > 1}
    assert [job.name for job in drawn] != sorted(job.name for job in drawn)


def test_lengths_and_tools_scale_apart() -> None:
    (shape,) = [shape for shape in SHAPES if shape.name == "hugginggpt"]
    whole = Instances(np.random.default_rng(4), Scale()).draw(shape).runs
    scaled = Instances(np.random.default_rng(4), Scale(length=0.1, tool=0.5)).draw(shape).runs
    assert scaled[1].seconds == pytest.approx(whole[1].seconds / 2)
    tokens = whole[2].calls[0].output_tokens
    assert scaled[2].calls[0].output_tokens == pytest.approx(tokens / 10, abs=1)


def test_arrivals_have_their_rate_and_those_of_a_trace_its_bursts() -> None:
    rng = np.random.default_rng(5)
    even = poisson(rng, 4000, 2.0)
    assert even[-1] == pytest.approx(2000, rel=0.05)
    bursty = [10.0 * (place // 10) + 0.01 * (place % 10) for place in range(1000)]
    drawn = resampled(rng, bursty, 200, 2.0)
    assert len(drawn) == 200 and drawn == sorted(drawn)
    assert drawn[-1] == pytest.approx(100.0)
    gaps = np.diff(drawn)
    assert np.std(gaps) / np.mean(gaps) > 2
    assert len(resampled(rng, bursty[:7], 200, 2.0)) == 200
