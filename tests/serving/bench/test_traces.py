"""Readers of both trace formats, and what becomes of a trace at another scale."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hecate.errors import ConfigError
from serving.bench.arrivals import as_json, at_random, closed, from_json, of_trace, scale
from serving.bench.timings import Timing, latencies, percentile
from serving.bench.traces import Arrival, Trace, read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:05.4799600,100,8
2023-11-16 18:17:04.4799600,3180,8
"""
MOONCAKE = [
    {"timestamp": 500, "input_length": 1100, "output_length": 50, "hash_ids": [0, 1, 2]},
    {"timestamp": 3500, "input_length": 1030, "output_length": 10, "hash_ids": [0, 1, 7]},
]


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def mooncake(folder: Path) -> Trace:
    lines = "\n".join(json.dumps(row) for row in MOONCAKE)
    return read_trace(written(folder, "talk.jsonl", lines + "\n"))


def test_azure(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, "code.csv", AZURE))
    assert (trace.name, trace.block_tokens) == ("code", 0)
    assert [each.prompt_tokens for each in trace.arrivals] == [4808, 3180, 100]  # by time
    assert [each.at_s for each in trace.arrivals] == pytest.approx([0, 0.5, 1.5])


def test_mooncake(tmp_path: Path) -> None:
    assert mooncake(tmp_path) == Trace(
        "talk",
        512,
        (Arrival(0.0, 1100, 50, (0, 1, 2)), Arrival(3.0, 1030, 10, (0, 1, 7))),
    )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "", "no trace"),
        ("a.csv", "", "no trace of Azure"),
        ("a.csv", "TIMESTAMP,ContextTokens\n", "GeneratedTokens is missing"),
        ("a.csv", AZURE + "yesterday,1,2\n", "line 5"),
        ("a.csv", AZURE + "2023-11-16 18:17:03,-1,2\n", "line 5"),
        ("a.jsonl", '{"timestamp": 0}\n', "line 1"),
        ("a.jsonl", "\n{\n", "line 2"),
        ("a.jsonl", "\n", "empty"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_trace(written(tmp_path, name, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "no.csv")


def test_scaled_blocks_are_shared_and_the_rest_is_not(tmp_path: Path) -> None:
    scaled = scale(mooncake(tmp_path), mean_prompt=213, most_prompt=215, most_output=100)
    assert scaled.length_factor == pytest.approx(0.2)  # the mean is 1065
    assert scaled.cut == 0.5  # 220 tokens became 215
    assert [each.prompt_tokens for each in scaled.trace.arrivals] == [215, 206]
    assert [each.output_tokens for each in scaled.trace.arrivals] == [10, 2]
    assert scaled.trace.block_tokens == 102
    one, two = of_trace(scaled.trace, 2, 4.0, vocabulary=500, seed=3)
    assert (one.at_s, two.at_s) == (0.0, 0.5)  # two requests in half a second
    assert one.prompt[:204] == two.prompt[:204] and one.prompt[204:206] != two.prompt[204:]
    assert (len(one.prompt), len(two.prompt)) == (215, 206)
    other = of_trace(scaled.trace, 1, 4.0, vocabulary=500, seed=4)[0]
    assert other.prompt[:8] != one.prompt[:8]


def test_random_requests_are_those_of_their_seed() -> None:
    kind = {"prompt_tokens": (4, 9), "output_tokens": (2, 3), "vocabulary": 100}
    asked = at_random(400, 20.0, **kind, seed=5)  # type: ignore[arg-type]
    assert asked == at_random(400, 20.0, **kind, seed=5)  # type: ignore[arg-type]
    assert {len(each.prompt) for each in asked} == set(range(4, 10))
    assert {each.output_tokens for each in asked} == {2, 3}
    assert min(min(each.prompt) for each in asked) >= 16
    assert asked[-1].at_s == pytest.approx(20, rel=0.2)
    assert from_json(json.loads(json.dumps(as_json(asked)))) == asked


def test_a_batch_is_of_prompts_that_differ() -> None:
    asked = closed(8, 12, 3, vocabulary=1000, seed=1)
    assert len({each.prompt[0:4] for each in asked}) == 8
    assert {(each.at_s, len(each.prompt), each.output_tokens) for each in asked} == {(0.0, 12, 3)}


def test_percentiles_and_what_failed() -> None:
    values = [float(value) for value in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99)) == (50.0, 99.0)
    assert percentile([7.0], 99) == 7.0
    found = latencies(
        [
            Timing(0.1, 0.5, 5),
            Timing(0.3, 0.3, 1),  # one token has no time between two
            Timing(9.0, 9.0, 1, error="lost"),
        ]
    )
    assert (found.answered, found.failed) == (2, 1)
    assert (found.ttft_p50_s, found.ttft_p99_s, found.tpot_p50_s) == (0.1, 0.3, 0.1)
