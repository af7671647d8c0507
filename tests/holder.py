"""Processes beside the test's own that hold files with it.

Each says what it has come to on a line of its own, and goes on after a line from the test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from patience import PATIENCE_S

from serving.memory.rendezvous import meeting


class Beside:
    """A process that runs ``python -m MODULE WHAT FOLDER``."""

    def __init__(self, module: str, what: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, what, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self) -> Any:
        """Its next line."""
        return json.loads(_pipe(self._process.stdout).readline())

    def go_on(self) -> None:
        pipe = _pipe(self._process.stdin)
        pipe.write("\n")
        pipe.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=PATIENCE_S)


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@contextmanager
def beside(module: str, what: str, folder: Path) -> Iterator[Beside]:
    """Such a process, killed in the end."""
    made = Beside(module, what, folder)
    try:
        yield made
    finally:
        made.kill()


def say(what: object) -> None:
    """A line for the test."""
    print(json.dumps(what), flush=True)


def run(what: dict[str, Callable[[Path], None]]) -> None:
    """Do what the test asks for, and wait to be killed."""
    what[sys.argv[1]](Path(sys.argv[2]))
    sys.stdin.readline()


def _announces(folder: Path) -> None:
    """Make the file of ``key``, tell its number, and hold it."""
    with meeting(folder, "key") as place:
        made = place.find(lambda file: True)
        found = made is not None
        if made is None:
            made = os.memfd_create("test")
            os.write(made, b"here")
        place.announce(made)
    say([found, os.fstat(made).st_ino])


def _dawdles(folder: Path) -> None:
    """Hold the list, and never get anywhere."""
    with meeting(folder, "key"):
        say("met")
        sys.stdin.readline()


if __name__ == "__main__":
    run({"announces": _announces, "dawdles": _dawdles})
