"""Jobs whose ranks are killed or hang: they go on, and compute what they would have computed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from jobs import (
    Forked,
    finish,
    fork,
    json_lines,
    metrics,
    set_,
    wait_for,
    wait_for_step,
    write_config,
    write_corpus,
)
from patience import PATIENCE_S

from hecate.train.stopping import STOPPED

pytestmark = pytest.mark.slow

STEPS, EVERY = 40, 5
LIMITS = set_(train__steps=STEPS, checkpoint__every=EVERY, train__dtype="float64")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a configuration, and a run of two ranks that nothing happened to."""
    folder = tmp_path_factory.mktemp("elastic")
    write_corpus(folder / "corpus")
    write_config(folder / "toy.yaml")
    train(folder, "straight")
    return folder


def words(name: str, *more: str, ranks: int = 2) -> list[str]:
    return ["train", "toy.yaml", *set_(name=name), *LIMITS, "--ranks", str(ranks), *more]


def train(folder: Path, name: str, *more: str) -> None:
    done = finish(fork(*words(name, *more), cwd=folder), 90)
    assert done.returncode == 0, done.stderr


def members(job: Forked) -> list[psutil.Process]:
    """The processes of the ranks; which is which changes with each replacement."""
    return psutil.Process(job.pid).children()


def numbers(run: Path) -> dict[int, tuple[float, float]]:
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in metrics(run)}


def recoveries(run: Path) -> list[dict[str, Any]]:
    return json_lines(run / "recoveries.jsonl")


def wait_for_recovery(run: Path, number: int, job: Forked) -> None:
    wait_for(lambda: len(recoveries(run)) >= number, f"recovery {number}", job)


def test_a_killed_and_a_hanging_rank_are_replaced_and_nothing_changes(folder: Path) -> None:
    run = folder / "runs" / "faults"
    limits = set_(mesh__timeout_s=15, elastic__leave_s=15)  # long enough on a busy machine
    job = fork(*words("faults", *limits), cwd=folder)
    wait_for_step(run, EVERY + 2, job)
    survivor, victim = members(job)
    victim.kill()
    wait_for_recovery(run, 1, job)
    assert survivor in members(job)
    survivor.suspend()
    done = finish(job)
    assert done.returncode == 0, done.stderr
    assert numbers(run) == numbers(folder / "runs" / "straight")
    killed, hung = recoveries(run)
    assert "was ended by SIGKILL" in killed["cause"] and "did not answer" in hung["cause"]
    for recovery in (killed, hung):
        assert recovery["ranks"] == [2, 2]
        # The newest save may not be over, but the one before it is: each waits for the last.
        assert 0 <= recovery["at_step"] - recovery["step"] < 2 * EVERY
        assert list(recovery["seconds"]) == ["leave", "fork", "join", "prepare", "step"]
    assert done.stderr.count("2 ranks went on after step") == 2
    assert "Traceback" not in done.stderr
    starts = json_lines(run / "starts.jsonl")
    assert [(start["step"], start.get("cause")) for start in starts] == [
        (0, None),
        (killed["step"], killed["cause"]),
        (hung["step"], hung["cause"]),
    ]


def test_without_replacement_fewer_ranks_compute_the_same(folder: Path) -> None:
    run = folder / "runs" / "fewer"
    more = (*set_(elastic__replace="false"), "--min-ranks", "1")
    job = fork(*words("fewer", *more, ranks=3), cwd=folder)
    for recovery, _ in enumerate(("three", "two"), 1):
        wait_for_step(run, recovery * (EVERY + 2), job)
        members(job)[-1].kill()
        wait_for_recovery(run, recovery, job)
    done = finish(job)
    assert done.returncode == 0, done.stderr
    assert [recovery["ranks"] for recovery in recoveries(run)] == [[3, 2], [2, 1]]
    straight = numbers(folder / "runs" / "straight")
    for step, values in numbers(run).items():
        assert values == pytest.approx(straight[step], rel=1e-9), step


def test_a_rank_that_only_fails_is_left_out_and_comes_back(folder: Path) -> None:
    """Rank 1 dies twice between two checkpoints; then another failure lets it in again."""
    run = folder / "runs" / "unlucky"
    more = (*set_(elastic__attempts=2, checkpoint__every=12), "--min-ranks", "1")
    job = fork(*words("unlucky", *more), cwd=folder)
    first, doomed = members_when_two(job)
    wait_for_step(run, 3, job)
    doomed.kill()
    wait_for_recovery(run, 1, job)
    (doomed,) = (process for process in members(job) if process != first)
    doomed.kill()
    wait_for_recovery(run, 2, job)
    assert members(job) == [first]
    saved = run / "checkpoints" / "step-00000012"
    wait_for(saved.exists, "the save of step 12", job)
    first.kill()
    done = finish(job)
    assert done.returncode == 0, done.stderr
    assert [recovery["ranks"] for recovery in recoveries(run)] == [[2, 2], [2, 1], [1, 2]]
    steps = [recovery["step"] for recovery in recoveries(run)]
    assert steps[:2] == [0, 0] and steps[2] in (12, 24)  # where it had come to when it was killed


def members_when_two(job: Forked) -> list[psutil.Process]:
    wait_for(lambda: len(members(job)) == 2, "the second rank", job)
    return members(job)


def test_a_job_that_only_fails_ends_and_its_ranks_with_it(folder: Path) -> None:
    run = folder / "runs" / "hopeless"
    job = fork(*words("hopeless", *set_(elastic__attempts=1)), cwd=folder)
    wait_for_step(run, 2, job)
    survivor, victim = members(job)
    victim.kill()
    done = finish(job)
    assert done.returncode == 1
    assert "failed again and again" in done.stderr and "elastic.attempts = 1" in done.stderr
    assert "rank 1 was ended by SIGKILL" in done.stderr
    assert not survivor.is_running()


def test_a_job_that_is_asked_to_end_saves_and_goes_on_later(folder: Path) -> None:
    run = folder / "runs" / "stopped"
    job = fork(*words("stopped", *set_(checkpoint__every=1000)), cwd=folder)
    wait_for_step(run, 7, job)
    job.send_signal(signal.SIGTERM)
    done = finish(job)
    assert done.returncode == STOPPED, done.stderr
    stopped_at = max(numbers(run))
    assert 7 <= stopped_at < STEPS
    assert f"stopped on request after step {stopped_at} of {STEPS}" in done.stdout
    train(folder, "stopped", "--resume", "auto")
    assert numbers(run) == numbers(folder / "runs" / "straight")


def test_what_the_user_can_mend_ends_the_job_with_one_message(folder: Path) -> None:
    done = finish(fork(*words("lost", *set_(data__path="nowhere")), cwd=folder), 60)
    assert done.returncode == 2
    assert done.stderr.count("error") == 1 and "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_ranks_end_with_their_supervisor(folder: Path) -> None:
    run = folder / "runs" / "orphans"
    job = fork(*words("orphans"), cwd=folder)
    wait_for_step(run, 1, job)
    ranks = members(job)
    job.kill()
    job.communicate()
    gone, alive = psutil.wait_procs(ranks, timeout=PATIENCE_S)
    assert len(gone) == 2 and not alive
