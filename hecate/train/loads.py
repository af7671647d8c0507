"""The router loads of a run, kept step by step in ``loads.jsonl`` for ``hecate plan`` to replay.

A line is an object. The first, and one for each time the run is taken up again, is a header: who
computed, who owned what, what the planner reckoned with. Every other is a step::

    {"step": 12, "slots": [[[[...], ...], ...], ...]}     micro-batches, layers, sources, experts

``step`` counts from 1, as in ``metrics.jsonl``. Sources are ranks; where a step has more than
``MOST_NUMBERS`` numbers it is summed up to one micro-batch of one source.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from collectives.topology import Link, Topology
from hecate.errors import StorageError
from hecate.files import replace
from hecate.fssdp.config import ExpertsConfig
from hecate.planner.costs import StepCosts
from hecate.planner.load import Counts
from hecate.planner.replay import Routed, RoutedStep

_LOG = logging.getLogger(__name__)

FILE = "loads.jsonl"
MOST_NUMBERS = 1 << 13


@dataclass(frozen=True)
class LoadsHeader:
    """What a replay needs beside the loads, as it was when the run had done ``step`` steps.

    ``owners[layer][expert]``: a rank. ``window``: the loads that the next step was planned from,
    ``[w, Y, E]``. ``gather_bytes``, ``reduce_bytes``: of each layer, one expert's weights and one
    expert's gradient. ``costs``, ``topology``: what the planner reckoned with; costs of zero were
    not measured.
    """

    step: int
    owners: tuple[tuple[int, ...], ...]
    window: Counts
    gather_bytes: tuple[int, ...]
    reduce_bytes: tuple[int, ...]
    costs: StepCosts
    topology: Topology
    experts: ExpertsConfig

    @property
    def world_size(self) -> int:
        return self.topology.world_size

    def record(self) -> dict[str, object]:
        """As a line of the file."""
        return {
            "step": self.step,
            "owners": self.owners,
            "window": self.window.tolist(),
            "gather_bytes": self.gather_bytes,
            "reduce_bytes": self.reduce_bytes,
            "costs": asdict(self.costs),
            "topology": asdict(self.topology),
            "experts": self.experts.model_dump(mode="json"),
        }

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> LoadsHeader:
        """The inverse of ``record``; ``LookupError``, ``TypeError``, ``ValueError`` for others."""
        return cls(
            step=int(record["step"]),
            owners=tuple(tuple(row) for row in record["owners"]),
            window=_counts(record["window"]),
            gather_bytes=tuple(record["gather_bytes"]),
            reduce_bytes=tuple(record["reduce_bytes"]),
            costs=StepCosts(**record["costs"]),
            topology=_topology(record["topology"]),
            experts=ExpertsConfig.model_validate(record["experts"], strict=False),
        )


@dataclass(frozen=True)
class RecordedLoads:
    """A file of loads: its headers, at least one, and its steps in order.

    ``cut``: whether the last line was left unfinished, and therefore out.
    """

    headers: tuple[LoadsHeader, ...]
    steps: tuple[RoutedStep, ...]
    cut: bool


class LoadsRecorder:
    """Appends each step's loads to a file; a line is out once ``record`` is.

    A new run starts the file anew. A resumed one cuts it after the step that it resumes from, which
    is ``header.step``, and drops what a kill left unfinished.
    """

    def __init__(self, path: Path, header: LoadsHeader) -> None:
        self._path, self._full = path, False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = _lines_before(path, header.step) if header.step else []
            replace(path, "".join([*kept, _line(header.record())]))
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise _storage_error(path, error) from error

    def record(self, step: int, routed: Routed) -> None:
        """Keep what step ``step``, counted from 0, routed."""
        if sum(counts_WE.size for layers in routed for counts_WE in layers) > MOST_NUMBERS:
            routed = (
                tuple(
                    np.sum([batch[layer].sum(0, keepdims=True) for batch in routed], axis=0)
                    for layer in range(len(routed[0]))
                ),
            )
        if self._full:
            return
        slots = [[counts_WE.tolist() for counts_WE in layers] for layers in routed]
        try:
            self._file.write(_line({"step": step + 1, "slots": slots}))
            self._file.flush()
        except OSError as error:  # no reason for training to end
            self._full = True
            _LOG.warning(
                "step %d: loads cannot be written to %s (%s): training goes on, and what is there "
                "ends with the step before",
                step + 1,
                self._path,
                error.strerror or error,
            )

    def close(self) -> None:
        with suppress(OSError):  # every line is out already
            self._file.close()


def read_loads(path: Path) -> RecordedLoads:
    """The loads that lie in ``path``: a run's folder or a file.

    Raises ``StorageError`` where there are none, or where a line cannot be read. A last line that
    is not whole is what a kill leaves, or a run that is still going, and is passed over.
    """
    file = path / FILE if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(
            f"there are no loads to replay in {path}",
            got=f"{file}: {getattr(error, 'strerror', None) or error}",
            expected=f"a run's folder with {FILE} in it, or such a file",
            fix="pass the folder of a run that hecate train made, such as runs/demo",
        ) from error
    lines = text.split("\n")
    cut = bool(lines.pop())
    headers: list[LoadsHeader] = []
    steps: list[RoutedStep] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if "slots" in record:
                _follow(headers, steps, record)
            else:
                headers.append(LoadsHeader.read(record))
        except (LookupError, TypeError, ValueError) as error:
            why = "a value of another kind" if isinstance(error, ValidationError) else str(error)
            raise StorageError(
                f"line {number} of {file} cannot be read",
                got=f"{line[:60]}{'...' if len(line) > 60 else ''} ({why})",
                expected="a header, or the loads of the step after the line before",
                fix=f"cut the file before line {number} (head -n {number - 1})",
            ) from error
    if not steps:
        raise StorageError(
            f"{file} holds no step yet",
            got=f"{len(headers)} lines",
            expected="a header and at least one step",
            fix="train the run for at least one step",
        )
    return RecordedLoads(tuple(headers), tuple(steps), cut)


def _follow(headers: list[LoadsHeader], steps: list[RoutedStep], record: Mapping[str, Any]) -> None:
    """Append the step of ``record``, if it is the one that is due and fits the header."""
    if not headers:
        raise ValueError("a step before any header")
    due = steps[-1].step + 1 if steps else headers[0].step
    if record["step"] != due + 1:
        raise ValueError(f"step {record['step']}; expected {due + 1}")
    routed = tuple(tuple(_counts(counts) for counts in layers) for layers in record["slots"])
    expected = [len(row) for row in headers[-1].owners]
    for layers in routed:
        shapes = [counts_SE.shape for counts_SE in layers]
        if [shape[1] for shape in shapes] != expected:
            raise ValueError(f"counts of shapes {shapes} for layers of {expected} experts")
    if not routed:
        raise ValueError("no micro-batch")
    steps.append(RoutedStep(due, routed))


def _topology(record: Mapping[str, Any]) -> Topology:
    inside, across = (Link(**record[name]) for name in ("inside", "across"))
    return Topology(tuple(record["node_of_rank"]), inside=inside, across=across)


def _counts(numbers: object) -> Counts:
    counts: Counts = np.asarray(numbers, dtype=np.int64)
    return counts


def _lines_before(path: Path, done: int) -> list[str]:
    """What a run keeps that goes on after ``done`` steps: these, and the headers before them."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            record = json.loads(line)
            last = record["step"] if "slots" in record else record["step"] + 1
        except (LookupError, TypeError, ValueError):
            break
        if not line.endswith("\n") or last > done:
            break
        kept.append(line)
    whole = bool(kept) and "slots" in (record := json.loads(kept[-1])) and record["step"] == done
    return kept if whole else []


def _line(record: Mapping[str, object]) -> str:
    return json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"


def _storage_error(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"loads cannot be written to {path}",
        got=error.strerror or str(error),
        expected="a writable folder with free space",
        fix="free some space or set folder to another disk",
    )
