"""Training on Ray: a cluster that grows, where a rank hangs and a node is lost, is asked to stop.

One cluster and one submitted job for most of it: starting a worker takes seconds of imports.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jobs import TOY, finish, json_lines, metrics, set_, start, write_config, write_corpus
from patience import until

from hecate.checkpoint.folder import saved_steps
from hecate.train.stopping import STOPPED

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EVERY = 20
NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20}
QUICK_TO_NOTICE = {
    "worker_niceness": 0,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}


@dataclass
class Nodes:
    """A Ray cluster on this machine; the first node takes jobs."""

    cluster: Any
    second: Any = None

    def grow(self) -> None:
        self.second = self.cluster.add_node(**NODE)

    def lose(self, workers: list[dict[str, Any]]) -> None:
        """As a machine that loses its power: the worker first, without a word."""
        (worker,) = [each for each in workers if each["node"] == self.second.node_id]
        os.kill(worker["pid"], signal.SIGKILL)
        self.cluster.remove_node(self.second, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        settings = {"include_dashboard": True, "dashboard_port": 0}
        cluster.add_node(**NODE, **settings, _system_config=QUICK_TO_NOTICE)
        yield Nodes(cluster)
    finally:
        cluster.shutdown()


@dataclass
class Job:
    """A run on the cluster, and what was seen of it before each thing that happened to it."""

    run: Path
    saved: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    exit_code: int = 0
    log: str = ""

    def records(self) -> list[dict[str, Any]]:
        return json_lines(self.run / "workers.jsonl")

    def attempts(self) -> list[dict[str, Any]]:
        return [record for record in self.records() if "workers" in record]

    def has_saved_in(self, number: int) -> list[dict[str, Any]]:
        """Return when the attempt of that number has saved something; its workers."""
        until(lambda: len(self.attempts()) >= number, f"attempt {number}")
        attempt = self.attempts()[number - 1]
        checkpoints = self.run / "checkpoints"
        until(
            lambda: max(saved_steps(checkpoints), default=0) > attempt["step"],
            f"a checkpoint of attempt {number}",
        )
        self.saved.append(max(saved_steps(checkpoints)))
        self.trained.append(metrics(self.run)[-1]["step"])
        workers: list[dict[str, Any]] = attempt["workers"]
        return workers


@pytest.fixture(scope="module")
def job(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Job:
    from ray.job_submission import JobStatus, JobSubmissionClient

    folder = tmp_path_factory.mktemp("ray")
    write_corpus(folder / "corpus")
    write_config(
        folder / "toy.yaml",
        TOY
        | {
            "train": {"steps": 100_000, "batch_sequences": 5},
            "checkpoint": {"every": EVERY},
            "watchdog": {"hang_s": 8.0},
            "ray": {
                "num_workers": 2,
                "min_workers": 1,
                "poll_s": 0.5,
                "start_timeout_s": 5.0,
                "resize_every_s": 3.0,
            },
        },
    )
    client = JobSubmissionClient(f"http://{nodes.cluster.head_node.webui_url}")
    command = f"cd {folder} && exec {sys.executable} -m hecate train toy.yaml --ray"
    submitted = client.submit_job(entrypoint=command)
    job = Job(folder / "runs" / "toy")

    job.has_saved_in(1)
    nodes.grow()
    _, second = job.has_saved_in(2)
    os.kill(second["pid"], signal.SIGSTOP)
    nodes.lose(job.has_saved_in(3))
    job.has_saved_in(4)
    os.kill(int(client.get_job_info(submitted).driver_info.pid), signal.SIGUSR1)

    until(lambda: client.get_job_status(submitted) == JobStatus.FAILED, "the job's end")
    job.exit_code = client.get_job_info(submitted).driver_exit_code
    job.log = client.get_job_logs(submitted)
    return job


def test_the_planner_knows_which_ranks_share_a_node(job: Job) -> None:
    starts = json_lines(job.run / "starts.jsonl")
    sizes = [(start["ranks"], start["nodes"]) for start in starts]
    assert sizes == [(1, 1), (2, 2), (2, 2), (1, 1)]
    for attempt, (_, count) in zip(job.attempts(), sizes, strict=True):
        assert len({worker["node"] for worker in attempt["workers"]}) == count


def test_each_attempt_goes_on_from_the_newest_checkpoint(job: Job) -> None:
    first, *later = job.attempts()
    assert first["step"] == 0
    for attempt, saved, trained in zip(later, job.saved, job.trained, strict=False):
        assert attempt["step"] >= saved and attempt["step"] % EVERY == 0
        assert trained - saved <= EVERY
    steps = [line["step"] for line in metrics(job.run)]
    assert steps == list(range(1, len(steps) + 1)) and steps[-1] > later[-1]["step"]


def test_a_stop_request_reaches_the_workers(job: Job) -> None:
    last = metrics(job.run)[-1]["step"]
    assert job.exit_code == STOPPED
    assert max(saved_steps(job.run / "checkpoints")) == last
    assert f"stopped on request after step {last}" in job.log


def test_the_run_folder_has_what_each_worker_said(job: Job) -> None:
    logs = {path.name: path.read_text() for path in (job.run / "logs").iterdir()}
    assert set(logs) == {"rank-0.log", "rank-1.log"}
    assert [log.count("--- 20") for _, log in sorted(logs.items())] == [4, 2]
    assert "has made no progress" in logs["rank-0.log"]
    assert "attempt 1: 1 worker on 1 node, from step 0" in job.log
    assert "attempt 2: 2 workers on 2 nodes, from step" in job.log


def test_the_run_folder_has_how_each_attempt_ended_and_the_next_began(job: Job) -> None:
    failures = [record for record in job.records() if "failed_s" in record]
    assert [failure["attempt"] for failure in failures] == [2, 3]
    assert failures[0]["ranks"]["0"] == "the worker died"  # by its watchdog
    lines = (job.run / "recoveries.jsonl").read_text().splitlines()
    recoveries = [json.loads(line) for line in lines]
    assert [recovery["ranks"] for recovery in recoveries] == [[2, 2], [2, 1]]
    for recovery, attempt in zip(recoveries, job.attempts()[2:], strict=True):
        assert recovery["step"] == attempt["step"] <= recovery["at_step"]
        assert list(recovery["seconds"]) == ["leave", "start", "join", "prepare", "step"]
    starts = json_lines(job.run / "starts.jsonl")
    causes = [start.get("cause", "") for start in starts]
    assert causes[:2] == ["", "the cluster has changed"]
    assert causes[2:] == [recovery["cause"] for recovery in recoveries]


def test_without_a_cluster_one_is_started_for_the_run(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    write_config(tmp_path / "toy.yaml")
    words = set_(train__steps=2)
    done = finish(start("train", "toy.yaml", "--ray", *words, cwd=tmp_path), 240)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "toy"
    assert [line["step"] for line in metrics(run)] == [1, 2]
    (start_line,) = (run / "starts.jsonl").read_text().splitlines()
    started = json.loads(start_line)
    assert (started["ranks"], started["nodes"]) == (1, 1)
    assert "attempt 1: 1 worker on 1 node" in done.stdout
    assert "held-out loss" in done.stdout and not done.stderr
