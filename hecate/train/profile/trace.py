"""A Chrome trace of ``torch.profiler`` as spans, and the names of Hecate's own. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Thread = tuple[Any, Any]
"""Process and thread, or device and stream."""

STEP = "hecate::step"
LAYER = "hecate::layer "
PHASE = "hecate::"
LAUNCH = "hecate::launch "
CARRY = "hecate::carry "
GLOO = "gloo:"
BACKWARD_NODE = "autograd::engine::evaluate_function: "


@dataclass(frozen=True, slots=True)
class Span:
    """One event. Times are microseconds from an origin that all of a trace's spans share.

    ``sequence``: the number by which autograd ties an operation to its node; ``correlation`` ties a
    kernel to its launch. Each is -1 where there is none.
    """

    name: str
    category: str
    thread: Thread
    start: float
    end: float
    sequence: int = -1
    correlation: int = -1

    @property
    def is_kernel(self) -> bool:
        return self.category == "kernel"


def read_spans(events: Iterable[Mapping[str, Any]]) -> list[Span]:
    """The spans of ``traceEvents``, those that enclose others first."""
    spans = []
    for event in events:
        if event.get("ph") != "X" or "dur" not in event:
            continue
        arguments = event.get("args", {})
        start = float(event["ts"])
        spans.append(
            Span(
                name=str(event["name"]),
                category=str(event.get("cat", "")),
                thread=(event.get("pid"), event.get("tid")),
                start=start,
                end=start + float(event["dur"]),
                sequence=int(arguments.get("Sequence number", -1)),
                correlation=int(arguments.get("correlation", -1)),
            )
        )
    spans.sort(key=lambda span: (span.start, -span.end))
    return spans
