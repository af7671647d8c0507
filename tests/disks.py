"""A file system that is full when a test wants it to be."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Disk:
    folder: Path

    def fill(self) -> None:
        """Leave no room but in pages that files have already."""
        with (self.folder / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                return

    def empty(self) -> None:
        (self.folder / "filler").unlink()


@contextmanager
def small_disk(folder: Path, *, pages: int) -> Iterator[Disk]:
    """A tmpfs of so many pages of 4 KiB at ``folder``; skips where it cannot be mounted."""
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={4 * pages}k", "tmpfs", str(folder)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
