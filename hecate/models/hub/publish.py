"""A folder that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hecate.errors import StorageError

MARKER = "hecate_export.json"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def publish_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` to write into; it becomes ``out`` if the block ends well.

    ``out`` may be missing, empty, or an earlier export (it bears ``MARKER``), which is replaced;
    any other folder is refused. Whatever goes wrong inside, ``out`` stays as it was, nothing is
    left beside it, and a failure of the disk is a ``StorageError``.
    """
    partial = out.parent / f".{out.name}.partial"
    try:
        _refuse_foreign(out)
        if partial.exists():
            shutil.rmtree(partial)  # of an export that was killed
        partial.mkdir(parents=True)
        yield partial
        _sync(partial)
        _replace(out, partial)
    except (OSError, SafetensorError) as error:
        number = _errno(error)
        if number == 0:
            raise
        raise StorageError(
            f"{out} could not be written",
            got=f"{os.strerror(number)} ({error})",
            expected=f"a folder that can be written, with room for the whole model{_room(out)}",
            fix="free some space or choose another place"
            if number in _FULL
            else "make its parent folder writable for this user, or choose another place",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_foreign(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())) or (out / MARKER).is_file():
        return
    raise StorageError(
        f"{out} exists and is no earlier export",
        got=f"a folder of {sum(1 for _ in out.iterdir())} files" if out.is_dir() else "a file",
        expected="a path where nothing is, an empty folder, or an earlier export to replace",
        fix="choose another place, or move it away",
    )


def _replace(out: Path, partial: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        partial.rename(out)
        return
    old = out.parent / f".{out.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    out.rename(old)
    partial.rename(out)
    shutil.rmtree(old)


def _sync(folder: Path) -> None:
    """Write every file, and the folder's names, through to the disk."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _errno(error: Exception) -> int:
    """The system's error number; 0 where the error is not the system's.

    safetensors says it in words only: "... (os error 28)".
    """
    if isinstance(error, OSError):
        return error.errno or 0
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else 0


def _room(out: Path) -> str:
    place = next((p for p in (out, *out.parents) if p.is_dir()), None)
    return "" if place is None else f" ({shutil.disk_usage(place).free / 2**30:.1f} GiB are free)"
