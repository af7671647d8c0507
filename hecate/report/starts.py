"""``starts.jsonl`` -> where a run was begun and taken up again, and on what; ``recoveries.jsonl``.

``hecate.train.starts`` writes it. Of a run without one, the headers of its loads tell the steps.
The other, of ``hecate.train.elastic``, says what a job that mends itself lost by each failure.
"""

from __future__ import annotations

import math
from pathlib import Path

from hecate.report.lines import Tally, lines_of, number, parsed
from hecate.report.records import Damage, Recovery, Start

FILE = "starts.jsonl"
RECOVERIES = "recoveries.jsonl"


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


def read_recoveries(path: Path) -> tuple[Recovery, ...]:
    """Every recovery in ``path``; lines that cannot be read are passed over, as they add to starts.

    Raises ``StorageError``.
    """
    found = []
    for line in lines_of(path):
        record = parsed(line.text) if line.whole else None
        ranks = record.get("ranks") if record else None
        seconds = record.get("seconds") if record else None
        if record is None or not isinstance(ranks, list) or len(ranks) != 2:
            continue
        found.append(
            Recovery(
                record["step"],
                str(record.get("cause", "")),
                int(_known(record.get("at_step"))),
                int(_known(ranks[0])),
                int(_known(ranks[1])),
                {str(name): _known(s) for name, s in seconds.items()}
                if isinstance(seconds, dict)
                else {},
            )
        )
    return tuple(found)


def _known(value: object) -> float:
    found = number(value)
    return 0.0 if math.isnan(found) else found
