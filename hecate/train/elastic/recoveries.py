"""How a job went on after a failure: ``recoveries.jsonl``, for ``hecate report``; and a line.

A line of the file for each recovery that came as far as a step::

    {"step": 50, "time_s": ..., "cause": "rank 1 was ended by SIGKILL", "at_step": 57,
     "ranks": [2, 2], "seconds": {"leave": 0.1, "fork": 0.0, ...}}

``step``: how many steps the run had done in the checkpoint that it went on from; ``at_step``: the
step that failed; ``ranks``: before and after.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hecate.errors import StorageError

FILE = "recoveries.jsonl"


@dataclass(frozen=True)
class Recovery:
    """``seconds``: of ``leave`` (until no rank was in the old group), ``fork``, ``join`` (until all
    were in the new one), ``prepare`` (until the first step began) and ``step`` (until it was done).
    """

    step: int
    time_s: float
    cause: str
    at_step: int
    ranks_before: int
    ranks_after: int
    seconds: Mapping[str, float]

    def line(self) -> str:
        """For people."""
        lost = self.at_step - self.step
        again = f", {lost} step{'s' * (lost != 1)} again" if lost else ""
        now = "" if self.ranks_before == self.ranks_after else f", before {self.ranks_before}"
        return (
            f"{self.cause} in step {self.at_step + 1}: {self.ranks_after} "
            f"rank{'s' * (self.ranks_after != 1)}{now} went on after step {self.step}{again}, "
            f"{sum(self.seconds.values()):.1f} s later"
        )


def record_recovery(folder: Path, recovery: Recovery) -> None:
    """Append it to the file in ``folder``. Raises ``StorageError``."""
    record = {
        "step": recovery.step,
        "time_s": round(recovery.time_s, 3),
        "cause": recovery.cause,
        "at_step": recovery.at_step,
        "ranks": [recovery.ranks_before, recovery.ranks_after],
        "seconds": {name: round(s, 4) for name, s in recovery.seconds.items()},
    }
    path = folder / FILE
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, separators=(",", ":")) + "\n")
    except OSError as error:
        raise StorageError(
            f"a recovery cannot be written to {path}",
            got=error.strerror or str(error),
            expected="a writable folder with free space",
            fix="free some space or set folder to another disk",
        ) from error
