"""One JSON object a line, for ``jq``, pandas and the commands that read a run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from hecate.errors import StorageError
from hecate.files import replace
from hecate.logging.appends import WholeAppends
from hecate.logging.config import LoggingConfig
from hecate.logging.protocol import Run, Value


class JsonlSink:
    """Appends ``{"step", "time_s", name: value, ...}`` to a file; a line is out once ``log`` is.

    ``time_s`` is Unix time. A number that is not finite becomes ``null``, as JSON has no NaN.
    A new run starts the file anew; a resumed one cuts it after the step it resumes from, and drops
    a last line that a kill left unfinished.
    """

    def __init__(
        self, path: Path, *, resumed_step: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._clock = clock
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = _lines_up_to(path, resumed_step) if resumed_step > 0 else []
            replace(path, "".join(kept))
            self._file = WholeAppends(path)
        except OSError as error:
            raise _storage_error(path, error) from error

    @classmethod
    def open(cls, config: LoggingConfig, run: Run) -> Self:
        return cls(run.folder / "metrics.jsonl", resumed_step=run.resumed_step)

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        record: dict[str, object] = {"step": step, "time_s": round(self._clock(), 3)}
        record |= {name: _finite(value) for name, value in values.items()}
        line = json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"
        try:
            self._file.append(line.encode())
        except OSError as error:
            raise _storage_error(self._path, error) from error

    def close(self) -> None:
        self._file.close()


def _lines_up_to(path: Path, step: int) -> list[str]:
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if (
            line.endswith("\n")
            and isinstance(record, dict)
            and record.get("step", step + 1) <= step
        ):
            kept.append(line)
    return kept


def _finite(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _storage_error(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"metrics cannot be written to {path}",
        got=error.strerror or str(error),
        expected="a writable folder with free space",
        fix="free some space or set folder to another disk",
    )
