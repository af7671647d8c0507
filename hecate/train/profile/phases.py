"""Which phase and layer each moment of a trace belongs to. Pure.

Forward passes name their phases themselves. A backward node belongs where the operation that made
it ran, which autograd's sequence numbers tell; what runs inside it may name its own phase.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hecate.train.profile.trace import BACKWARD_NODE, GLOO, LAYER, PHASE, STEP, Span, Thread

# The names of PhaseClock and of the recorder's hooks -> what people read, in the order of a step.
NAMES = {
    "data": "data",
    "forward": "embedding and head",
    "attention": "attention",
    "router": "router",
    "dispatch": "dispatch",
    "all_to_all": "token exchange",
    "launch sparse gather": "sparse gather, launch",
    "gather": "sparse gather, wait",
    "experts": "experts",
    "launch sparse reduce": "sparse reduce, launch",
    "reduce": "sparse reduce, wait",
    "layer": "rest of a layer",
    "dense gather": "dense gather",
    "dense reduce": "dense reduce",
    "backward": "backward, unnamed",
    "optimizer": "optimizer",
    "step": "other",
}
NO_LAYER = -1


@dataclass(frozen=True, slots=True)
class Label:
    """What a moment is spent on: a key of ``NAMES``, where, which way."""

    phase: str
    layer: int = NO_LAYER
    backward: bool = False


@dataclass
class Timeline:
    """One thread inside the recorded steps: labels in order, each from its time to the next."""

    times: list[float] = field(default_factory=list)
    labels: list[Label | None] = field(default_factory=list)

    def change(self, time: float, label: Label | None) -> None:
        if self.times and self.times[-1] == time:
            self.labels[-1] = label
        elif not self.labels or self.labels[-1] != label:
            self.times.append(time)
            self.labels.append(label)

    def at(self, time: float) -> Label | None:
        """The label there; ``None`` outside of steps, or where the thread had nothing to do."""
        place = bisect_right(self.times, time) - 1
        return self.labels[place] if place >= 0 else None

    def seconds(self) -> dict[Label, float]:
        """How long each label was the innermost one."""
        total: dict[Label, float] = {}
        for start, end, label in zip(self.times, self.times[1:], self.labels, strict=False):
            if label is not None:
                total[label] = total.get(label, 0.0) + (end - start) / 1e6
        return total


def timelines(spans: Sequence[Span]) -> dict[Thread, Timeline]:
    """The labels of every thread that computes: that of the steps first, then autograd's.

    ``spans`` as ``read_spans`` orders them. Empty for a trace without recorded steps.
    """
    main = next((span.thread for span in spans if span.name.startswith(STEP)), None)
    if main is None:
        return {}
    helping = {s.thread for s in spans if s.name.startswith(BACKWARD_NODE)} - {main}
    made_by: dict[int, Label] = {}
    own = [span for span in spans if span.thread == main]
    lines = {main: _timeline(own, made_by)}
    for thread in sorted(helping, key=str):
        lines[thread] = _timeline([span for span in spans if span.thread == thread], made_by)
    return lines


def _timeline(spans: Sequence[Span], made_by: dict[int, Label]) -> Timeline:
    """``made_by``: sequence numbers -> the labels of forward operations; read and added to."""
    line = Timeline()
    inside: list[tuple[float, Label | None]] = []  # ends and labels of the spans that are open

    def close(until: float) -> None:
        while inside and inside[-1][0] <= until:
            end, _ = inside.pop()
            line.change(end, inside[-1][1] if inside else None)

    for span in spans:
        if span.name.startswith(GLOO):  # ends whenever the collective does
            continue
        close(span.start)
        before = inside[-1][1] if inside else None
        label = _label(span, before, made_by)
        if span.sequence >= 0 and label is not None and not label.backward:
            made_by[span.sequence] = label
        inside.append((min(span.end, inside[-1][0]) if inside else span.end, label))
        line.change(span.start, label)
    close(float("inf"))
    return line


def _label(span: Span, before: Label | None, made_by: dict[int, Label]) -> Label | None:
    name = span.name
    if name.startswith(BACKWARD_NODE):
        maker = made_by.get(span.sequence, Label("backward"))
        return replace(maker, backward=True)
    if name.startswith(STEP):
        return Label("step")
    if before is None:
        return None
    if name.startswith(LAYER):
        return replace(before, phase="layer", layer=int(name.removeprefix(LAYER)))
    phase = name.removeprefix(PHASE)
    if name.startswith(PHASE) and phase in NAMES:
        return replace(before, phase=phase, backward=before.backward or phase == "backward")
    if name.startswith("FSDP::all_gather"):
        return replace(before, phase="dense gather")
    if name.startswith(("FSDP::post_backward_reduce", "FSDP::post_backward_rs_wait")):
        return replace(before, phase="dense reduce", backward=True)
    return before
