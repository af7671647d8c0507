"""Figures of replicas by hand, and their way to Weights & Biases, offline."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from wandb_files import history, records

pytest.importorskip("ray")
from serving.app.config import WandbConfig  # noqa: E402
from serving.app.figures import Reading, charts, replica_figures  # noqa: E402
from serving.app.latency import Latency, LatencyTotals  # noqa: E402
from serving.app.recorder import Recorder  # noqa: E402
from serving.engine.protocol import EngineLoad  # noqa: E402
from serving.request import Delta, Finish, Usage  # noqa: E402


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


def load(waiting: int, running: int, generated: int, prompts: int, hits: int) -> EngineLoad:
    return EngineLoad(
        waiting=waiting,
        running=running,
        tokens_in_flight=0,
        blocks_used=2,
        blocks_cached=0,
        blocks_total=8,
        steps_total=0,
        prompt_tokens_total=prompts,
        generated_tokens_total=generated,
        prefix_query_tokens_total=prompts,
        prefix_hit_tokens_total=hits,
        preemptions_total=0,
    )


BEFORE = Reading("a", 10.0, load(0, 1, 100, 1000, 0), LatencyTotals(1, 0.5, 10, 1.0))
NOW = Reading("a", 14.0, load(3, 5, 300, 1400, 100), LatencyTotals(3, 1.5, 60, 2.0))


def delta(name: str, index: int, tokens: int, finish: Finish | None = None) -> Delta:
    return Delta(name, index, (7,) * tokens, "", Usage(1, 0, tokens), finish=finish)


def test_latency_is_of_first_tokens_and_of_all_later_ones() -> None:
    latency = Latency()
    latency.begin("a", 1.0)
    latency.begin("b", 2.0)
    latency.take(delta("a", 0, 0), 2.5)  # no token yet
    latency.take(delta("a", 0, 1), 3.0)
    latency.take(delta("a", 1, 2), 4.0)  # the request has had its first one
    latency.take(delta("a", 0, 2), 4.0)
    assert latency.totals == LatencyTotals(1, 2.0, 0, 0.0)
    latency.take(delta("a", 0, 0, Finish.STOP), 5.0)  # 3 tokens, from 3 to 5
    latency.take(delta("a", 1, 1, Finish.LENGTH), 7.0)  # 3 tokens, from 4 to 7
    assert latency.totals == LatencyTotals(1, 2.0, 4, 5.0)
    latency.take(delta("b", 0, 1, Finish.STOP), 12.0)  # one token has no later ones
    latency.end("b")
    latency.take(delta("b", 0, 1), 13.0)
    latency.take(delta("c", 0, 1), 13.0)
    assert latency.totals == LatencyTotals(2, 12.0, 4, 5.0)


def test_figures_by_hand() -> None:
    assert replica_figures(BEFORE, NOW) == {
        "queue": 3.0,
        "batch": 5.0,
        "memory": 0.25,
        "tokens_per_s": 50.0,  # 200 in 4 s
        "prompt_tokens_per_s": 100.0,
        "preemptions": 0.0,
        "cache_hit_rate": 0.25,  # 100 of 400
        "ttft_s": 0.5,  # 1 s for 2
        "tpot_s": 0.02,  # 1 s for 50
    }
    idle = Reading("a", 18.0, NOW.load, NOW.latency)
    assert not {"cache_hit_rate", "ttft_s", "tpot_s"} & set(replica_figures(NOW, idle))


def test_what_adds_up_is_charted_of_all_replicas_too() -> None:
    other = Reading("b", 3.0, load(1, 2, 0, 0, 0), LatencyTotals())
    row = charts({"a": BEFORE}, {"a": NOW, "b": other})
    assert row["replicas/all"] == 2
    assert (row["queue/a"], row["queue/b"], row["queue/all"]) == (3, 1, 4)
    assert row["tokens_per_s/all"] == row["tokens_per_s/a"] == 50
    assert "tokens_per_s/b" not in row and "ttft_s/all" not in row


async def recorded(config: WandbConfig) -> None:
    """A recorder that hears of one replica as it was, and then as it is, for a few periods each."""
    recorder = Recorder(config, "toy", {"replicas": {"max": 3}})
    while recorder._sink is None and not recorder._writing.done():
        await asyncio.sleep(0.02)
    for reading in (BEFORE, NOW):
        for _ in range(20):
            recorder.hear(reading)
            await asyncio.sleep(config.every_s / 5)
    await recorder.close()


def test_what_replicas_tell_is_an_offline_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    asyncio.run(recorded(WandbConfig(mode="offline", folder=str(folder), every_s=0.25)))
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows = history(path)
    assert rows[0]["batch/a"] == 1
    assert [row["tokens_per_s/a"] for row in rows if row.get("tokens_per_s/a")] == [50]
    assert [row["ttft_s/a"] for row in rows if "ttft_s/a" in row] == [0.5]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    (run,) = (record.run for record in records(path) if record.HasField("run"))
    assert (run.display_name, run.project) == ("toy", "hecate")
    assert {item.key: item.value_json for item in run.config.update}["replicas"] == '{"max":3}'


def test_a_folder_that_cannot_be_written_is_said_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        config = WandbConfig(mode="offline", folder=str(tmp_path / "run"), every_s=0.05)
        asyncio.run(recorded(config))
    (message,) = [r.getMessage() for r in caplog.records if r.name == "serving.app"]
    assert "goes on without Weights & Biases" in message and "cannot be kept" in message
