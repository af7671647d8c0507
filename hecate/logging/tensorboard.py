"""TensorBoard: event files in the run folder. The only file that imports ``tensorboard``.

``SummaryWriter`` writes in a thread, which cannot say that the disk is full; here ``log`` writes.
"""

from __future__ import annotations

import io
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from hecate.logging.appends import WholeAppends
from hecate.logging.config import LoggingConfig
from hecate.logging.protocol import Run, Value
from hecate.logging.sections import charts_of

FOLDER = "tensorboard"
FILES = "events.out.tfevents."


class TensorBoardSink:
    """Curves in sections, and heat maps as histograms over layers or experts.

    A resumed run goes on beside the files of the one before, whose later steps TensorBoard drops;
    a new run in an old folder removes them.
    """

    def __init__(self, run: Run, *, clock: Callable[[], float] = time.time) -> None:
        folder = run.folder / FOLDER
        if not run.resumed_step:
            for old in folder.glob(f"{FILES}*"):
                old.unlink()
        self._clock, self._events = clock, _EventFile(folder, clock)
        start = SessionLog(status=SessionLog.START)
        self._pending = [self._event(run.resumed_step + 1, session_log=start)]
        for name, facts in (("configuration", run.settings), ("environment", run.environment)):
            text = json.dumps(dict(facts), indent=2, default=str).replace("\n", "\n    ")
            self._pending.append(
                self._event(run.resumed_step, summary=summary.text(name, f"    {text}"))
            )

    @classmethod
    def open(cls, config: LoggingConfig, run: Run) -> Self:
        return cls(run)

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        charts = charts_of(values)
        made = [summary.scalar(name, number) for name, number in charts.curves.items()]
        made += [_histogram(name, heights) for name, heights in charts.maps.items()]
        self._events.append(self._pending + [self._event(step, summary=one) for one in made])
        self._pending = []

    def close(self) -> None:
        self._events.close()

    def _event(self, step: int, **what: Any) -> Event:
        return Event(wall_time=self._clock(), step=step, **what)


class _EventFile:
    """Appends events to a file that begins with the first of them."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder, self._clock = folder, clock
        self._file: WholeAppends | None = None

    def append(self, events: Sequence[Event]) -> None:
        """All of them, or none and ``OSError``: a reader would stop at half an event."""
        records = io.BytesIO()
        writer = RecordWriter(records)
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            # files of a run are read in the order of their names
            name = f"{FILES}{int(self._clock()):010d}.{socket.gethostname()}.{os.getpid()}.0"
            self._file = WholeAppends(self._folder / name)
        if not self._file.size:
            begin = Event(wall_time=self._clock(), file_version="brain.Event:2")
            writer.write(begin.SerializeToString())
        for event in events:
            writer.write(event.SerializeToString())
        self._file.append(records.getvalue())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _histogram(name: str, heights: Sequence[float]) -> Any:
    """A bar for each place, from its number to the next."""
    bars, places = np.array(heights, dtype=np.float64), np.arange(len(heights))
    return summary.histogram_raw(
        name,
        min=0.0,
        max=float(len(heights)),
        num=float(bars.sum()),
        sum=float((bars * places).sum()),
        sum_squares=float((bars * places**2).sum()),
        bucket_limits=(places + 1.0).tolist(),
        bucket_counts=bars.tolist(),
    )
