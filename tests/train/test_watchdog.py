"""A rank that hangs is told of and ended; one that is only slow at first is not."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from jobs import fork, set_, write_config, write_corpus
from patience import PATIENCE_S

from hecate.train.watchdog import HUNG, Watchdog, WatchdogConfig


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def watchdog(tmp_path: Path, clock: Clock, **limits: float) -> Watchdog:
    return Watchdog(WatchdogConfig(**limits), 3, tmp_path, clock=clock, end=lambda code: None)


def test_a_rank_is_overdue_after_hang_s_without_progress(tmp_path: Path) -> None:
    clock = Clock()
    watched = watchdog(tmp_path, clock, hang_s=10, first_step_s=100)
    for step in (6, 7):
        watched.step(step)
    clock.now_s = 8
    watched.phase("forward")
    watched.phase("all_to_all")
    clock.now_s = 17.9
    assert watched.overdue() is None
    clock.now_s = 18
    error = watched.overdue()
    assert error is not None
    assert "rank 3 has made no progress for 10 s" in str(error)
    assert "it hangs in step 8, all_to_all;" in str(error)
    assert "watchdog.hang_s = 10 s" in str(error)


def test_the_first_step_has_an_allowance_of_its_own(tmp_path: Path) -> None:
    clock = Clock()
    watched = watchdog(tmp_path, clock, hang_s=10, first_step_s=100)
    watched.step(6)
    clock.now_s = 99
    assert watched.overdue() is None
    clock.now_s = 100
    error = watched.overdue()
    assert error is not None and "watchdog.first_step_s = 100 s" in str(error)


@pytest.mark.parametrize("off", ["hang_s", "first_step_s"])
def test_zero_is_never(off: str, tmp_path: Path) -> None:
    clock = Clock()
    watched = watchdog(tmp_path, clock, **{off: 0})
    watched.step(0)
    if off == "hang_s":
        watched.step(1)
    clock.now_s = 1e9
    assert watched.overdue() is None


def test_it_ends_the_process_once_and_leaves_the_stacks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    config = WatchdogConfig(hang_s=0.2, first_step_s=0.2)
    watched = Watchdog(config, 0, tmp_path, clock=time.monotonic, end=end)
    with watched.watching():
        assert ended.wait(PATIENCE_S)
    assert codes == [HUNG]
    assert "rank 0 has made no progress" in capfd.readouterr().err
    stacks = (tmp_path / "hang-rank-0.txt").read_text()
    assert "test_it_ends_the_process_once_and_leaves_the_stacks" in stacks


def test_a_rank_that_hangs_outside_of_collectives_ends_and_so_does_its_peer(
    tmp_path: Path,
) -> None:
    """Nobody reads what rank 0 prints, so that it hangs as soon as the pipe is full."""
    write_corpus(tmp_path / "corpus")
    write_config(tmp_path / "toy.yaml")
    words = set_(
        train__steps=5000,
        logging__sinks="[console]",
        mesh__timeout_s=3,
        watchdog__hang_s=7,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    unread = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(unread, fcntl.F_SETPIPE_SZ, 4096)
    command = ("train", "toy.yaml", *words)
    ranks = [
        fork(*command, cwd=tmp_path, out=pipe if rank == 0 else None, RANK=str(rank), **place)
        for rank in range(2)
    ]
    try:
        codes = [rank.wait(timeout=PATIENCE_S) for rank in ranks]
    finally:
        for process in ranks:
            process.kill()
        told = [rank.communicate()[1] for rank in ranks]
        os.close(unread)
    assert codes == [HUNG, 1], told
    assert "rank 0 has made no progress" in told[0] and "Traceback" not in told[0]
    assert "another rank died or hung" in told[1]
    assert "console.py" in (tmp_path / "runs" / "toy" / "hang-rank-0.txt").read_text()
