"""Where processes of one machine find a file that has no name, and is gone with the last of them.

Note: how a file is found
    Whoever holds the file of ``key`` has a line in a list of that name: its process and its
    descriptor. Another opens the same file by ``/proc/PID/fd``, looks whether it is what it wants,
    and adds a line. The list is locked (``flock``) meanwhile, and also while one that found nothing
    makes the file, so that the others wait for it. The kernel ends the lock of a killed maker, who
    has no line yet, and frees the file when nobody holds it any more, however they ended. Lines
    of those that are gone are left out when the list is next written, lists without a living one
    are removed when another is made.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


def node_folder() -> Path:
    """A folder that this user's processes on this machine share, and no other user's."""
    return Path("/dev/shm") / f"hecate-{os.getuid()}"


class Meeting:
    """The list of one file's holders, while it is locked."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        text = os.pread(handle, os.fstat(handle).st_size, 0).decode(errors="replace")
        self._lines = [line for line in text.splitlines() if alive(line)]

    def find(self, fits: Callable[[int], bool]) -> int | None:
        """A descriptor, for reading, of a file that ``fits``; None where nobody holds one."""
        for line in self._lines:
            process, number = line.split()
            with suppress(OSError), ExitStack() as unless_it_fits:
                found = os.open(f"/proc/{process}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC)
                unless_it_fits.callback(os.close, found)
                if fits(found):
                    unless_it_fits.pop_all()
                    return found
        return None

    def announce(self, file: int) -> None:
        """Others find ``file`` from now on, for as long as this process has it open."""
        lines = [*self._lines, f"{os.getpid()} {file}"]
        content = "".join(f"{line}\n" for line in lines).encode()
        if os.pwrite(self._handle, content, 0) != len(content):
            raise OSError(f"no room for {len(content)} bytes")
        os.ftruncate(self._handle, len(content))
        self._lines = lines


@contextmanager
def meeting(folder: Path, key: str) -> Iterator[Meeting]:
    """The list of who holds the file of ``key``; others wait. Raises ``OSError``."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not this user's alone")
    handle = _locked(folder / key)
    try:
        _sweep(folder, key)
        yield Meeting(handle)
    finally:
        os.close(handle)


def alive(line: str) -> bool:
    """Whether a list's line is of a process that runs and has the descriptor open."""
    try:
        process, number = map(int, line.split())
    except ValueError:
        return False
    return os.path.lexists(f"/proc/{process}/fd/{number}")


def _locked(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink:
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # it was removed before we had the lock


def _sweep(folder: Path, key: str) -> None:
    """Remove other lists that name nobody who lives."""
    for path in folder.iterdir():
        if path.name == key:
            continue
        with suppress(OSError):
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not Meeting(handle)._lines:
                    path.unlink()
            finally:
                os.close(handle)
