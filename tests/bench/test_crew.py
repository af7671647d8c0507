"""Crews start, take turns, fail with a reason, and leave nobody behind."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
from patience import PATIENCE_S
from toy_workload import TOY

from hecate.bench.crew import ContenderError, combine, cores_of, crew_of
from hecate.bench.peers import Job
from hecate.bench.turns import Turn, Turns
from hecate.bench.worker import do_tasks, take_turns
from hecate.bench.workloads import TWO_RANKS
from hecate.mesh import ParallelContext

JOB = Job(TOY, TWO_RANKS, 9, "float32", 1, Path("none"), Path("none"))


def counts(job: Job, ctx: ParallelContext, turns: Turns) -> None:
    """Its loss is the number of the step, half from each rank."""
    turns.ready(world=str(ctx.world_size), pid=str(os.getpid()))
    for step in range(job.steps):
        turns.step_done(step / ctx.world_size)


def cannot_be_built(job: Job, ctx: ParallelContext, turns: Turns) -> None:
    if ctx.rank == 1:
        raise RuntimeError("no such kernel\nand a second line")
    turns.ready()


def hangs(job: Job, ctx: ParallelContext, turns: Turns) -> None:
    turns.ready(pid=str(os.getpid()))
    if ctx.rank == 0:
        time.sleep(600)
    dist.barrier(group=ctx.groups.control)


def crew(train: object, folder: Path, timeout_s: float = 60) -> object:
    return crew_of(
        "toy",
        partial(take_turns, train, JOB),  # type: ignore[arg-type]
        JOB.layout,
        cores=(),
        folder=folder,
        timeout_s=timeout_s,
        seed=JOB.seed,
    )


def test_turns_go_on_where_the_last_one_ended(tmp_path: Path) -> None:
    with crew(counts, tmp_path) as toy:  # type: ignore[attr-defined]
        settings = toy.wait_ready()
        assert settings["world"] == "2"
        assert toy.turn(2).losses == (0, 1)
        assert toy.turn(3).losses == (2, 3, 4)
    assert not psutil.pid_exists(int(settings["pid"]))


def test_a_rank_that_raises_names_its_reason(tmp_path: Path) -> None:
    with (
        crew(cannot_be_built, tmp_path) as toy,  # type: ignore[attr-defined]
        pytest.raises(ContenderError, match="on rank 1") as failure,
    ):
        toy.wait_ready()
    assert failure.value.got.splitlines()[0] == "no such kernel"
    assert "RuntimeError: no such kernel" in failure.value.got


def test_a_rank_that_is_killed_is_noticed(tmp_path: Path) -> None:
    with crew(hangs, tmp_path) as toy:  # type: ignore[attr-defined]
        pid = int(toy.wait_ready()["pid"])
        started = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ContenderError, match="failed in a turn"):
            toy.turn(1)
    assert time.monotonic() - started < 20


def test_a_rank_that_hangs_is_given_up(tmp_path: Path) -> None:
    with crew(hangs, tmp_path, timeout_s=15) as toy:  # type: ignore[attr-defined]
        pid = int(toy.wait_ready()["pid"])
        toy._timeout_s = 0.5
        with pytest.raises(ContenderError, match="no answer"):
            toy.turn(1)
    assert not psutil.pid_exists(pid)


def which_rank(ctx: ParallelContext) -> int:
    return ctx.rank


def fails(ctx: ParallelContext) -> None:
    raise RuntimeError("no such task")


def test_a_crew_does_tasks_until_one_fails(tmp_path: Path) -> None:
    with crew_of(
        "toy", do_tasks, TWO_RANKS, cores=(), folder=tmp_path, timeout_s=PATIENCE_S, seed=1
    ) as toy:
        assert toy.do(which_rank, timeout_s=PATIENCE_S) == [0, 1]
        assert toy.do(which_rank, timeout_s=PATIENCE_S) == [0, 1]
        with pytest.raises(ContenderError, match="failed in a task"):
            toy.do(fails, timeout_s=PATIENCE_S)


def test_a_turn_of_ranks_is_as_slow_as_the_slowest() -> None:
    turns = [Turn(1.0, (2.0, 1.0), 10), Turn(3.0, (0.5, 0.25), 20)]
    assert combine(turns) == Turn(3.0, (2.5, 1.25), 30)


def test_ranks_have_cores_of_their_own_where_there_are_enough() -> None:
    assert [cores_of(r, 2, 1, (4, 7)) for r in range(2)] == [(4,), (7,)]
    assert cores_of(0, 1, 2, (4, 7, 9)) == (4, 7)
    assert [cores_of(r, 2, 2, (4, 7, 9)) for r in range(2)] == [(4, 7, 9), (4, 7, 9)]
    assert cores_of(0, 1, 2, ()) == ()
