"""``starts.jsonl`` -> where a run was begun and taken up again, and on what.

``hecate.train.starts`` writes it. Of a run without one, the headers of its loads tell the steps.
"""

from __future__ import annotations

import math
from pathlib import Path

from hecate.report.lines import Tally, lines_of, number, parsed
from hecate.report.records import Damage, Start

FILE = "starts.jsonl"


def read_starts(path: Path) -> tuple[tuple[Start, ...], Damage]:
    """Every start in ``path``; none where there is no such file. Raises ``StorageError``."""
    starts: list[Start] = []
    tally = Tally()
    for line in lines_of(path):
        record = parsed(line.text) if line.whole else None
        if record is None:
            tally.unread(line)
            continue
        environment = record.get("environment")
        environment = environment if isinstance(environment, dict) else {}
        starts.append(
            Start(
                record["step"],
                time_s=_known(record.get("time_s")),
                num_ranks=int(_known(record.get("ranks"))),
                num_nodes=int(_known(record.get("nodes"))),
                environment={str(name): str(value) for name, value in environment.items()},
                cause=str(record.get("cause", "")),
            )
        )
    return tuple(starts), tally.damage()


def _known(value: object) -> float:
    found = number(value)
    return 0.0 if math.isnan(found) else found
