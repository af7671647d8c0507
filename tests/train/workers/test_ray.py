"""Training on a Ray cluster of two nodes that loses a worker and a node, and is asked to stop.

One cluster and two runs for all: starting the workers of an attempt takes seconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jobs import TOY, metrics, set_, write_config, write_corpus

from hecate.checkpoint.folder import saved_steps
from hecate.config import load_config
from hecate.train.config import RunConfig
from hecate.train.run import TrainResult
from hecate.train.workers.launch import train_on_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EVERY = 20
QUICK_TO_NOTICE = {
    "worker_niceness": 0,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 90) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    sizes = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20}
    cluster = Cluster()
    cluster.add_node(
        **sizes, include_dashboard=True, dashboard_port=0, _system_config=QUICK_TO_NOTICE
    )
    try:
        cluster.second = cluster.add_node(**sizes)
        yield cluster
    finally:
        cluster.shutdown()


@dataclass
class Scenario:
    """A run on the cluster, and what happens to it meanwhile."""

    folder: Path
    cluster: Any
    said: list[str] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    failure: BaseException | None = None

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "toy"

    def attempts(self) -> list[dict[str, Any]]:
        path = self.run / "workers.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [record for record in map(json.loads, lines) if "workers" in record]

    def has_saved_in(self, number: int) -> dict[str, Any]:
        """The attempt of that number, as soon as it has saved something of its own."""
        wait_for(lambda: len(self.attempts()) >= number, f"attempt {number}")
        attempt = self.attempts()[number - 1]
        checkpoints = self.run / "checkpoints"
        wait_for(
            lambda: max(saved_steps(checkpoints), default=0) > attempt["step"],
            f"a checkpoint of attempt {number}",
        )
        self.saved.append(max(saved_steps(checkpoints)))
        self.trained.append(metrics(self.run)[-1]["step"])
        return attempt

    def disturb(self) -> None:
        try:
            attempt = self.has_saved_in(1)
            os.kill(attempt["workers"][1]["pid"], signal.SIGKILL)
            self.has_saved_in(2)
            self.cluster.remove_node(self.cluster.second, allow_graceful=False)
            self.has_saved_in(3)
        except BaseException as error:
            self.failure = error
        os.kill(os.getpid(), signal.SIGUSR1)


@dataclass
class Ended:
    scenario: Scenario
    result: TrainResult


@pytest.fixture(scope="module")
def ended(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("ray")
    write_corpus(folder / "corpus")
    write_config(folder / "toy.yaml", TOY | {"checkpoint": {"every": EVERY}})
    words = set_(
        ray__num_workers=2,
        ray__min_workers=1,
        ray__poll_s=0.5,
        ray__start_timeout_s=5,
        train__steps=100_000,
    )
    loaded = load_config(RunConfig, folder / "toy.yaml", words[1::2])
    scenario = Scenario(folder, cluster)
    thread = threading.Thread(target=scenario.disturb)
    before = Path.cwd()
    os.chdir(folder)
    try:
        thread.start()
        result = train_on_ray(
            loaded.value,
            origins=loaded.origins,
            resume="none",
            address=cluster.address,
            show=scenario.said.append,
        )
    finally:
        os.chdir(before)
    thread.join()
    if scenario.failure:
        raise scenario.failure
    return Ended(scenario, result)


def test_the_planner_knows_which_ranks_share_a_node(ended: Ended) -> None:
    starts = [
        json.loads(line) for line in (ended.scenario.run / "starts.jsonl").read_text().splitlines()
    ]
    assert [(start["ranks"], start["nodes"]) for start in starts] == [(2, 2), (2, 2), (1, 1)]
    nodes = [[w["node"] for w in attempt["workers"]] for attempt in ended.scenario.attempts()]
    assert len(set(nodes[0])) == 2 and nodes[2] == [ended.scenario.cluster.head_node.node_id]


def test_each_attempt_goes_on_from_the_newest_checkpoint(ended: Ended) -> None:
    first, *later = ended.scenario.attempts()
    assert first["step"] == 0
    for attempt, saved, trained in zip(
        later, ended.scenario.saved, ended.scenario.trained, strict=False
    ):
        assert attempt["step"] >= saved and attempt["step"] % EVERY == 0
        assert trained - saved <= EVERY
    steps = [line["step"] for line in metrics(ended.scenario.run)]
    assert steps == list(range(1, ended.result.steps + 1))


def test_a_stop_request_reaches_the_workers(ended: Ended) -> None:
    assert ended.result.stopped
    assert max(saved_steps(ended.scenario.run / "checkpoints")) == ended.result.steps


def test_the_run_folder_has_what_each_worker_said_and_how_each_attempt_ended(ended: Ended) -> None:
    run = ended.scenario.run
    logs = {path.name: path.read_text() for path in (run / "logs").iterdir()}
    assert set(logs) == {"rank-0.log", "rank-1.log"}
    assert [log.count("--- 20") for _, log in sorted(logs.items())] == [3, 2]
    assert f"stopped on request after step {ended.result.steps}" in logs["rank-0.log"]
    lines = [json.loads(line) for line in (run / "workers.jsonl").read_text().splitlines()]
    failures = [line for line in lines if "failed_s" in line]
    assert [line["attempt"] for line in failures] == [1, 2]
    assert "1" in failures[0]["ranks"] and "Died" in failures[0]["ranks"]["1"]
    said = "\n".join(ended.scenario.said)
    assert "attempt 1: 2 workers on 2 nodes, from step 0" in said
    assert "attempt 3: 1 worker on 1 node" in said and "stopped on request" in said


def test_a_submitted_job_trains_on_the_cluster_that_it_was_submitted_to(
    cluster: Any, ended: Ended
) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    folder = ended.scenario.folder
    client = JobSubmissionClient(f"http://{cluster.head_node.webui_url}")
    words = " ".join(["toy.yaml", "--ray", *set_(name="submitted", train__steps=3)])
    job = client.submit_job(entrypoint=f"cd {folder} && {sys.executable} -m hecate train {words}")
    over = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED}
    status = wait_for(lambda: (s := client.get_job_status(job)) in over and s, "the job's end")
    log = client.get_job_logs(job)
    assert status == JobStatus.SUCCEEDED, log
    assert "attempt 1: 1 worker on 1 node, from step 0" in log
    run = folder / "runs" / "submitted"
    assert [line["step"] for line in metrics(run)] == [1, 2, 3]
    (worker,) = json.loads((run / "workers.jsonl").read_text())["workers"]
    assert worker["node"] == cluster.head_node.node_id
