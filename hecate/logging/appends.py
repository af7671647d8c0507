"""A file that grows by whole pieces, on a disk that may be full."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path


class WholeAppends:
    """Appends to ``path`` without a buffer: what a call has written is there, or none of it is."""

    def __init__(self, path: Path) -> None:
        self._file = io.FileIO(path, "a")
        self.size = self._file.seek(0, io.SEEK_END)
        """Bytes that are there."""

    def append(self, piece: bytes) -> None:
        """Raises ``OSError``; the file is then as it was."""
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(self.size)
            raise
        self.size += len(piece)

    def close(self) -> None:
        self._file.close()
