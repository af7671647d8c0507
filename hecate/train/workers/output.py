"""What workers print: into the run's folder, and from there to the driver's terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hecate.errors import StorageError

FOLDER = "logs"


def log_file(run: Path, rank: int) -> Path:
    """Where the rank's output goes; that of all attempts, one after the other."""
    return run / FOLDER / f"rank-{rank}.log"


@contextmanager
def output_into(path: Path, heading: str) -> Iterator[None]:
    """Send what this process prints inside to the end of ``path``, below ``heading``.

    The descriptors themselves lead there, so that the last words of C++ code arrive too.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"a worker's output cannot be written to {path}",
            got=error.strerror or str(error),
            expected="a run folder that all nodes see and may write",
            fix="set folder to one on a file system that they share",
        ) from error
    with file:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        file.write(f"--- {stamp} UTC, {heading}\n")
        file.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        before = [os.dup(descriptor) for descriptor in (1, 2)]
        try:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, old in zip((1, 2), before, strict=True):
                os.dup2(old, descriptor)
                os.close(old)


class Follower:
    """Hands on the lines that a file grows by, from its present end on."""

    def __init__(self, path: Path, show: Callable[[str], None]) -> None:
        self._path, self._show = path, show
        self._read = path.stat().st_size if path.exists() else 0

    def look(self) -> None:
        """Show each line that is whole and was not shown yet."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            self._show(line)
