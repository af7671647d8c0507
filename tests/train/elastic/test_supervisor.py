"""Who is asked, blamed and waited for, with members that train nothing: real processes and pipes.

What real ranks do is in test_jobs.py.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from hecate.errors import HecateError
from hecate.train.elastic.config import ElasticConfig
from hecate.train.elastic.members import fork
from hecate.train.elastic.messages import Answer, Began, Done, End, Failed, Join, Joined, Left
from hecate.train.elastic.roster import Roster
from hecate.train.elastic.supervisor import Supervisor
from hecate.train.run import TrainResult
from hecate.train.stopping import StopRequest

Part = Callable[[int, Join, Connection], Answer]


@dataclass(frozen=True)
class Scripted:
    """A member that does ``part(slot, join, supervisor)`` in each generation."""

    slot: int
    part: Part

    def run(self, supervisor: Connection) -> None:
        while not isinstance(join := supervisor.recv(), End):
            supervisor.send(answer := self.part(self.slot, join, supervisor))
            if isinstance(answer, Failed):
                os._exit(answer.exit_code)


def job(
    folder: Path,
    part: Part,
    *,
    ranks: int = 2,
    least: int = 1,
    replaces: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    config = ElasticConfig(leave_s=1.0, attempts=2, replace=replaces)
    supervisor = Supervisor(
        Roster.of(ranks, least=least, attempts=config.attempts, replaces=replaces),
        config,
        folder,
        folder,
        "none",
        fork=lambda slot: fork(Scripted(slot, part)),
        say=lambda *words, **how: None,
        stop=stop,
    )
    return supervisor.run()


def causes(folder: Path) -> list[tuple[str, list[int]]]:
    lines = (folder / "recoveries.jsonl").read_text().splitlines()
    return [(record["cause"], record["ranks"]) for record in map(json.loads, lines)]


def train(join: Join, supervisor: Connection) -> Answer:
    supervisor.send(Joined(join.generation))
    for step in (0, 1):
        supervisor.send(Began(join.generation, step))
    return Done(join.generation, TrainResult(Path("run"), 2, {}))


def dies_before_it_joins(slot: int, join: Join, supervisor: Connection) -> Answer:
    if join.world_size == 1:
        return train(join, supervisor)
    if slot == 1:
        os._exit(3)
    time.sleep(60)  # as long as the meeting may take
    return Left(join.generation, "nobody came")


@pytest.mark.parametrize("replaces", [True, False])
def test_who_waits_for_a_dead_one_to_join_is_not_blamed(tmp_path: Path, replaces: bool) -> None:
    """Slot 1 dies each time before it joins: it is left out, and slot 0 goes on alone."""
    began_s = time.monotonic()
    assert job(tmp_path, dies_before_it_joins, replaces=replaces).steps == 2
    assert causes(tmp_path) == [("rank 1 ended with exit code 3", [2, 1])]
    assert time.monotonic() - began_s < 20


def hangs_before_it_joins(slot: int, join: Join, supervisor: Connection) -> Answer:
    if join.world_size == 1:
        return train(join, supervisor)
    if slot == 1:
        time.sleep(60)
    return Left(join.generation, "rank 1 did not come within 3 s")


def test_who_does_not_answer_when_the_others_have_left_is_left_out(tmp_path: Path) -> None:
    assert job(tmp_path, hangs_before_it_joins).steps == 2
    assert causes(tmp_path) == [("rank 1 did not answer", [2, 1])]


def deaf_at_first(slot: int, join: Join, supervisor: Connection) -> Answer:
    """As a process that was just forked, which has not come to its own handlers."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    time.sleep(0.5)
    stop = StopRequest()
    deadline_s = time.monotonic() + 15
    with stop.listening():
        while not stop() and time.monotonic() < deadline_s:
            time.sleep(0.01)
    return Done(join.generation, TrainResult(Path("run"), 1, {}, stopped=stop()))


def test_members_are_asked_to_stop_until_they_have_heard(tmp_path: Path) -> None:
    with StopRequest().listening():
        assert job(tmp_path, deaf_at_first, ranks=1, stop=lambda: True).stopped


def fails(slot: int, join: Join, supervisor: Connection) -> Answer:
    supervisor.send(Joined(join.generation))
    return Failed(join.generation, f"Traceback of slot {slot}", 1)


def test_a_job_that_fails_while_it_is_to_end_says_what_failed(tmp_path: Path) -> None:
    asks = iter([True])  # and never again
    with pytest.raises(HecateError) as caught, StopRequest().listening():
        job(tmp_path, fails, ranks=1, stop=lambda: next(asks, False))
    assert "failed before it had saved a checkpoint" in str(caught.value)
    assert "ended with exit code 1" in str(caught.value)
    assert "Traceback of slot 0" in str(caught.value)
