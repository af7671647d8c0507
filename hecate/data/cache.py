"""Build a thing once on a machine, whoever asks first; the others wait and use it.

Note: how a cache entry comes to be
    An entry is a folder. Whoever finds none takes the lock beside it, looks again, builds into
    ``.NAME.partial-HOST-PID`` and renames that when it is whole. The lock is the kernel's
    (``flock``): it dies with its holder, so a killed builder leaves an unlocked lock file, which
    locks nothing, and a partial folder, which is never read and which the next builder on that
    host removes. Where a file system does not share locks between hosts, two hosts may build the
    same entry; the first rename wins.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hecate.data.progress import Progress
from hecate.errors import StorageError
from hecate.files import locked

_POLL_S = 0.05
_REPORT = "progress"

Report = Callable[[int, int], None]
"""What a builder calls as it goes on: (done, total)."""


def build_once(
    entry: Path,
    build: Callable[[Path, Report], None],
    *,
    whole: Callable[[Path], bool],
    what: str,
    progress: Progress,
) -> None:
    """See to it that ``entry`` is there: found, built here by ``build``, or built by another.

    ``whole`` tells an entry from a damaged one, which is built anew. ``build`` gets an empty
    folder and must leave in it what ``whole`` asks for; ``progress`` hears of the building even
    while another process does it. Raises ``StorageError``.
    """
    if whole(entry):
        return
    with storage_errors(entry.parent):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _locked(entry, lambda: _pass_on(entry, what, progress)):
            if whole(entry):  # another process built it while this one waited
                return
            here = f".{entry.name}.partial-{platform.node()}-"
            for left_over in entry.parent.glob(here + "*"):
                shutil.rmtree(left_over, ignore_errors=True)
            shutil.rmtree(entry, ignore_errors=True)
            partial = entry.parent / f"{here}{os.getpid()}"
            partial.mkdir()
            try:
                build(partial, _reporter(partial, what, progress))
                (partial / _REPORT).unlink(missing_ok=True)
                sync_folder(partial)
                partial.rename(entry)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                if not whole(entry):  # else another host was faster
                    raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all. Raises ``StorageError``."""
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        try:
            partial.write_bytes(content)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """What the file system refuses inside becomes a ``StorageError`` that names ``folder``."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write to {folder}",
            got=error.strerror or str(error),
            expected="a folder on a local disk with room for the tokens, about 2 bytes each",
            fix="free some space, or set data.cache (or the run's folder) to another disk",
        ) from error


def sync_folder(folder: Path) -> None:
    """Bring the folder's files to the disk before a rename makes them count."""
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _locked(entry: Path, while_waiting: Callable[[], None]) -> Iterator[None]:
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(entry.with_name(f".{entry.name}.lock"), wait=False))
                break
            except BlockingIOError:
                while_waiting()
                time.sleep(_POLL_S)
        yield


def _reporter(partial: Path, what: str, progress: Progress) -> Report:
    last_s = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last_s
        if done < total and time.monotonic() - last_s < _POLL_S:
            return
        last_s = time.monotonic()
        (partial / _REPORT).write_text(f"{done} {total}")
        progress(what, done, total)

    return report


def _pass_on(entry: Path, what: str, progress: Progress) -> None:
    """Tell ``progress`` how far the process that holds the lock has come."""
    for partial in entry.parent.glob(f".{entry.name}.partial-*"):
        try:
            done, total = map(int, (partial / _REPORT).read_text().split())
        except (OSError, ValueError):
            continue  # it has not begun, is finished, or is just writing
        progress(what, done, total)
