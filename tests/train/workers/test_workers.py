"""Workers on Ray, as far as no cluster is needed: what ends a run, what is said and written."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from hecate.cli import main
from hecate.errors import CollectiveFailure, ConfigError, HecateError, StorageError
from hecate.train.workers.config import RayConfig
from hecate.train.workers.coordinator import FILE, Attempt, Coordinator, Failure, WorkerStart
from hecate.train.workers.failures import FailureCount, first_words
from hecate.train.workers.launch import told
from hecate.train.workers.output import Follower, log_file, output_into
from hecate.train.workers.work import Start, Steps

DEMO = Path(__file__).parents[3] / "configs" / "train" / "demo.yaml"
DIED = {1: RuntimeError("worker died"), 0: CollectiveFailure("a peer died")}


def test_failures_count_only_while_nothing_is_saved_between_them() -> None:
    failures = FailureCount(allowed=2)
    assert [failures.after(step, DIED) for step in (0, 0, 50, 50)] == [None] * 4
    error = failures.after(50, DIED)
    assert isinstance(error, HecateError) and "failed 3 times" in error.what
    assert failures.after(100, DIED) is None


def test_what_the_user_can_mend_ends_a_run_at_once() -> None:
    mendable = ConfigError("no such corpus")
    assert FailureCount(allowed=9).after(0, {0: RuntimeError("x"), 1: mendable}) is mendable


def test_an_error_in_words_is_one_short_line() -> None:
    assert first_words(ValueError("a\n  b")) == "ValueError: a b"
    assert len(first_words(ValueError("x" * 10_000))) < 400


def test_resources_are_named_as_ray_names_them() -> None:
    config = RayConfig(cpus_per_worker=4, gpus_per_worker=1, resources={"rack_a": 0.5})
    assert config.resources_per_worker == {"CPU": 4.0, "GPU": 1.0, "rack_a": 0.5}
    assert RayConfig().resources_per_worker == {"CPU": 1.0}
    with pytest.raises(ValueError, match="min_workers 3 is more than num_workers 2"):
        RayConfig(num_workers=2, min_workers=3)


def test_the_coordinator_writes_each_attempt_and_failure_down(tmp_path: Path) -> None:
    workers = [
        WorkerStart(rank, 10 + rank, f"node{rank}", "host", 1.0, 2.0 + rank) for rank in (0, 1)
    ]

    async def talk() -> tuple[list[Attempt], int, bool]:
        coordinator = Coordinator(str(tmp_path / "run"))
        first = await coordinator.begin(40, workers)
        await coordinator.at_step(57)
        step = await coordinator.failed({1: "ActorDiedError: gone"})
        second = await coordinator.begin(60, workers[:1])
        waiting = asyncio.ensure_future(coordinator.stop_asked())
        await asyncio.sleep(0)
        assert not waiting.done()
        await coordinator.ask_to_stop()
        return [first, second], step, await waiting

    attempts, step, asked = asyncio.run(talk())
    first, second = attempts
    assert first == Attempt(1, 40) and step == 40 and asked
    assert (second.number, second.first_step) == (2, 40) and second.failure is not None
    assert second.failure.cause == "rank 1: ActorDiedError: gone"
    assert (second.failure.at_step, second.failure.workers) == (57, 2)
    lines = (tmp_path / "run" / FILE).read_text().splitlines()
    assert json.loads(lines[0])["workers"][1]["pid"] == 11
    assert [told(line) for line in lines] == [
        "attempt 1: 2 workers on 2 nodes, from step 40",
        "attempt 1 failed. rank 1: ActorDiedError: gone",
        "attempt 2: 1 worker on 1 node, from step 60",
    ]


class Listener:
    """What a coordinator hears of steps."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def at_step(self, step: int) -> None:
        self.steps.append(step)


def test_a_failure_that_is_overcome_is_told_with_its_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = Failure("rank 1: the worker died", noticed_s=100.0, at_step=57, workers=2)
    worker = WorkerStart(0, 10, "node", "host", born_s=101.0, entered_s=104.0)
    start = Start(Attempt(2, 0, failure), "auto", (worker,), met_s=104.5)
    now_s, desk = iter([106.0, 106.125, 107.0]), Listener()
    steps = Steps(start, tmp_path, desk, clock=lambda: next(now_s))  # type: ignore[arg-type]
    for step in (50, 51, 52):
        steps(step)
    (line,) = (tmp_path / "recoveries.jsonl").read_text().splitlines()
    record = json.loads(line)
    seconds = {"leave": 1.0, "start": 3.0, "join": 0.5, "prepare": 1.5, "step": 0.125}
    assert record["seconds"] == seconds
    assert (record["step"], record["at_step"], record["ranks"]) == (50, 57, [2, 1])
    said = capsys.readouterr().out
    assert "1 rank, before 2 went on after step 50, 7 steps again, 6.1 s later" in said
    assert desk.steps == [50, 52]  # 51 came too soon after


@pytest.mark.parametrize(
    ("attempt", "cause"),
    [
        (Attempt(1, 0), ""),
        (Attempt(2, 0, Failure("rank 1: the worker died", 1.0, 5, 2)), "rank 1: the worker died"),
        (Attempt(3, 0), "the cluster has changed"),
    ],
)
def test_why_a_run_is_taken_up_again_is_known(attempt: Attempt, cause: str) -> None:
    assert Start(attempt, "auto", (), 0.0).cause == cause


def test_what_a_worker_prints_is_in_its_file_to_the_last_word(tmp_path: Path) -> None:
    file = log_file(tmp_path, 3)
    shown: list[str] = []
    follower = Follower(file, shown.append)
    follower.look()
    with output_into(file, "first"):
        os.write(1, b"one\nhalf")
        follower.look()
        os.write(2, b" a line\n")
    with output_into(file, "second"):
        os.write(2, b"two\n")
    follower.look()
    assert shown[0].endswith("first") and shown[1:3] == ["one", "half a line"]
    assert shown[3].endswith("second") and shown[4:] == ["two"]
    late: list[str] = []
    Follower(file, late.append).look()
    assert not late


def test_a_run_folder_that_a_worker_cannot_write_is_said(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with (
        pytest.raises(StorageError, match="worker's output cannot be written"),
        output_into(log_file(tmp_path, 0), "x"),
    ):
        pass


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ray-address", "head:6379"], "--ray-address is for --ray"),
        (["--ray", "--set", "mesh.device=cuda"], "no worker would have a GPU"),
        pytest.param(
            ["--ray", "--ray-address", "ray://head:10001"],
            "ray job submit",
            marks=pytest.mark.ray,
        ),
    ],
)
def test_what_cannot_be_trained_on_ray_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(DEMO), *words]) == 2
    assert said in capsys.readouterr().err
