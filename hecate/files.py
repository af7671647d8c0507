"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from hecate.errors import StorageError


def write_text(path: Path, text: str) -> None:
    """Write ``text``, whole or not at all. Raises ``StorageError``."""
    content = text.encode("utf-8")
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise StorageError(
            f"cannot write {path}", got=str(error), fix="free space, or give another path"
        ) from error
