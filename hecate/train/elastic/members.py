"""The processes of a job's members, from outside: fork them, hear them, end them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess

from hecate.train.elastic.member import Member
from hecate.train.elastic.messages import Answer, End, Join

_ENDS_WITHIN_S = 10.0


@dataclass
class Running:
    """A member's process and this end of its pipe."""

    member: Member
    process: ForkProcess
    pipe: Connection

    def hear(self) -> list[Answer]:
        """What it said since the last time; nothing where it died in the middle of a word."""
        heard: list[Answer] = []
        try:
            while self.pipe.poll():
                heard.append(self.pipe.recv())
        except (EOFError, OSError):
            pass
        return heard

    def tell(self, message: Join | End) -> None:
        """A member that just died does not hear it; its death is noticed elsewhere."""
        try:
            self.pipe.send(message)
        except OSError:
            pass

    def stop(self) -> None:
        """Ask it to end its run with a checkpoint."""
        if self.process.is_alive() and self.process.pid is not None:
            signal_process(self.process.pid, signal.SIGUSR1)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def end(self) -> None:
        """Let it end by itself, or kill it."""
        self.tell(End())
        self.process.join(_ENDS_WITHIN_S)
        if self.process.is_alive():
            self.kill()
        self.pipe.close()

    def fate(self) -> str:
        """How a process that is over came to its end."""
        code = self.process.exitcode
        if code is None:
            return "did not answer"
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


Fork = Callable[[int], Running]


def fork(member: Member) -> Running:
    """A process for ``member``, forked from this one, which should have no threads of its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    process = context.Process(target=_run, args=(member, theirs, ours), daemon=True)
    process.start()
    theirs.close()
    return Running(member, process, ours)


def _run(member: Member, supervisor: Connection, other_end: Connection) -> None:
    other_end.close()
    member.run(supervisor)


def signal_process(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
