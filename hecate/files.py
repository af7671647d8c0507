"""Files that are there whole or not at all, and locks between processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hecate.errors import StorageError


def write_text(path: Path, text: str) -> None:
    """Write ``text``, whole or not at all. Raises ``StorageError``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, text)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}", got=str(error), fix="free space, or give another path"
        ) from error


def replace(path: Path, text: str) -> None:
    """Make ``text`` all that is in ``path``, whole or not at all. Raises ``OSError``."""
    content = text.encode("utf-8")
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold ``path``, which is made if it is not there, against all other processes.

    The lock is the kernel's (``flock``): it dies with its holder. Raises ``OSError``, and without
    ``wait`` ``BlockingIOError`` where somebody else holds it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
