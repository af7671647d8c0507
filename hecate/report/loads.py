"""``loads.jsonl`` -> where each step's router loads lie, and the loads of some of them.

The file of a large run has gigabytes. It is read through once for the places of its lines, and
only those that are drawn are parsed. ``hecate.train.loads`` writes it and says what is in it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from hecate.report.lines import MOST_STEPS, Tally, line_at, lines_of, parsed
from hecate.report.records import Floats, LoadSteps, Start

FILE = "loads.jsonl"

_STEP = re.compile(rb'\{"step":\s*(\d+),\s*"slots":\s*\[')


def read_loads(path: Path) -> LoadSteps:
    """The steps in ``path``, each once; none where there is no such file. Raises ``StorageError``.

    A line of slots is taken on its first bytes; one that turns out to be no slots has none.
    """
    steps: list[int] = []
    offsets: list[int] = []
    starts: list[Start] = []
    tally = Tally()
    for line in lines_of(path):
        found = _STEP.match(line.text) if line.whole else None
        record = parsed(line.text) if line.whole and not found else None
        step = int(found[1]) if found else record["step"] if record and "slots" in record else None
        if step is not None and step < MOST_STEPS:
            before = len(steps)
            while steps and steps[-1] >= step:
                steps.pop()
                offsets.pop()
            tally.repeated(before - len(steps), step)
            steps.append(step)
            offsets.append(line.offset)
        elif record is not None and "owners" in record:
            starts.append(_start(record))
        else:
            tally.unread(line)
    begun = starts[0].step if starts else max(0, steps[0] - 1) if steps else 0
    return LoadSteps(
        source=path.name,
        begun=begun,
        steps=np.array(steps, dtype=np.int64),
        offsets=np.array(offsets, dtype=np.int64),
        starts=tuple(starts),
        damage=tally.damage(),
    )


def slots_of_step(path: Path, offset: int) -> list[Floats]:
    """Each layer's slots of each expert, ``[E]``, over micro-batches and sources; empty if none."""
    record = parsed(line_at(path, offset)) or {}
    try:
        batches = [[_of_sources(table) for table in layers] for layers in record["slots"]]
        return [np.sum(parts, axis=0) for parts in zip(*batches, strict=True)]
    except (LookupError, OverflowError, TypeError, ValueError):
        return []


def _of_sources(table: object) -> Floats:
    """``[sources, E]`` -> ``[E]``; ``ValueError`` for another shape."""
    counts_SE = np.array(table, dtype=np.float64)
    if counts_SE.ndim != 2:
        raise ValueError("no table of sources and experts")
    summed: Floats = counts_SE.sum(0)
    return summed


def _start(record: dict[str, Any]) -> Start:
    topology = record.get("topology")
    nodes = topology.get("node_of_rank") if isinstance(topology, dict) else None
    nodes = nodes if isinstance(nodes, list) else []
    return Start(record["step"], num_ranks=len(nodes), num_nodes=len(set(map(str, nodes))))
