"""What was logged -> curves over steps, of no more points than a screen shows. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hecate.report.bins import Bins
from hecate.report.records import Floats, Ints, Logged, Metrics, Start

MOST_POINTS = 480
DIGITS = 5


@dataclass(frozen=True)
class Curve:
    """``y[i]`` at step ``x[i]``, None where it was not finite.

    Where a point stands for several lines it is their mean, and ``low`` and ``high`` are the least
    and the greatest of them; else both are empty. ``dots``: points apart from each other.
    """

    name: str
    x: list[float]
    y: list[float | None]
    low: list[float | None]
    high: list[float | None]
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes. ``unit``: as the page knows it. ``zero``: from zero up.

    ``edges``, of bars: bar i is of the steps after ``edges[i]``, up to the next.
    """

    key: str
    title: str
    unit: str
    curves: list[Curve]
    note: str = ""
    zero: bool = False
    edges: list[int] | None = None


@dataclass(frozen=True)
class Training:
    """The training lines as columns. ``intervals[i]``: how many steps line i speaks of."""

    steps: Ints
    intervals: Floats
    lines: tuple[Logged, ...]
    begun: int

    @classmethod
    def of(cls, metrics: Metrics, starts: Sequence[Start]) -> Training:
        """``begun`` is the step that the first line's interval began with, as far as is known."""
        steps = np.array([line.step for line in metrics.training], dtype=np.int64)
        befores = sorted({start.step for start in starts} | {0})
        intervals, previous = [], 0
        if len(steps):
            usual = int(steps[1] - steps[0]) if len(steps) > 1 else int(steps[0])
            taken_up = [start.step for start in starts if start.step < steps[0]]
            previous = max(taken_up, default=max(0, int(steps[0]) - usual))
        begun = previous
        for step in steps.tolist():
            place = int(np.searchsorted(befores, step)) - 1  # the last start before it
            since = max(previous, befores[place]) if place >= 0 else previous
            intervals.append(max(1, step - since))
            previous = step
        return cls(steps, np.array(intervals, dtype=np.float64), metrics.training, begun)

    def values(self, name: str) -> Floats:
        """One number for each line, NaN where it has none."""
        return np.array([line.values.get(name, math.nan) for line in self.lines])

    def layers(self, name: str) -> Floats:
        """``[lines, Y]``, NaN where a line has none."""
        found = [line.layers.get(name) for line in self.lines]
        widest = max((len(row) for row in found if row is not None), default=0)
        table = np.full((len(found), widest), np.nan)
        for place, row in enumerate(found):
            if row is not None:
                table[place, : len(row)] = row
        return table

    def over_layers(self, name: str) -> Floats:
        """The sum over layers for each line, NaN where it has none."""
        table = self.layers(name)
        return np.where(np.isfinite(table).any(1), np.nansum(table, axis=1), np.nan)

    def layer_names(self) -> list[str]:
        """Every name of numbers by layer, in the order in which they first come."""
        return list(dict.fromkeys(name for line in self.lines for name in line.layers))

    def names(self) -> list[str]:
        """Every name of a number, in the order in which they first come."""
        return list(dict.fromkeys(name for line in self.lines for name in line.values))


def curve(name: str, steps: Ints, values: Floats, most: int = MOST_POINTS) -> Curve:
    """``values`` over ``steps``, put together where there are more than ``most``."""
    bins = Bins.of(len(steps), most)
    together = bins.most_in_one > 1
    return Curve(
        name,
        places(bins.means(steps.astype(np.float64))),
        rounded(bins.means(values)),
        rounded(bins.least(values)) if together else [],
        rounded(bins.greatest(values)) if together else [],
    )


def places(steps: Floats) -> list[float]:
    """Where on the axis of steps, to a tenth of a step."""
    return [round(step, 1) for step in steps.tolist()]


def rounded(values: Floats, digits: int = DIGITS) -> list[float | None]:
    """To ``digits`` significant ones; None for what is not finite."""
    return [float(f"{one:.{digits}g}") if math.isfinite(one) else None for one in values.tolist()]


def charts(metrics: Metrics, training: Training) -> list[Chart]:
    """Every chart that the lines have more than zeros for, in the order of the page."""
    made = [
        _loss(metrics, training),
        _plain(training, "speed", "Tokens per second", "/s", "tokens_per_s"),
        _plain(training, "mfu", "Model FLOPs utilisation", "share", "mfu", "of measured peak"),
        _plain(training, "grad", "Gradient norm", "", "grad_norm", "before clipping"),
        _plain(training, "noise", "Gradient noise scale", "tokens", "noise_scale_tokens"),
        _plain(training, "rate", "Learning rate", "", "learning_rate"),
        _plain(training, "auxiliary", "Auxiliary loss", "", "auxiliary_loss", "of the routers"),
        _plain(training, "experts", "Experts' FLOPs utilisation", "share", "experts/mfu"),
        _plain(training, "skipped", "Steps left out", "count", "skipped_steps", "since the start"),
        _memory(training),
        _moved(training),
        _plain(training, "copies", "Copies of experts", "count", "load/copies", "in one step"),
        _per_step(training, "bytes", "Bytes of copies", "bytes", BYTES, _number),
        _per_step(training, "missed", "Mispredicted", "count", MISSED, _layers),
        _per_step(training, "waits", "Waits", "s", WAITS, _layers),
        *_others(training),
    ]
    return [chart for chart in made if any(y for c in chart.curves for y in c.y)]


BYTES = {"gather/bytes": "weights out", "reduce/bytes": "gradients home"}
MISSED = {"load/idle_copies": "copies in vain", "load/missed_experts": "experts without one"}
WAITS = {
    "load/straggler_wait_s": "for the busiest rank",
    "gather/exposed_s": "for copies",
    "gather/hidden_s": "copies hidden",
}
MEMORY = {
    "memory/device_bytes": "device",
    "memory/peak_device_bytes": "device, peak",
    "memory/resident_bytes": "host",
    "memory/peak_resident_bytes": "host, peak",
}
SHOWN = frozenset(
    "loss perplexity bits_per_byte tokens_per_s mfu learning_rate grad_norm auxiliary_loss "
    "load/copies load/moved_experts experts/mfu skipped_steps noise_scale_tokens".split()
) | frozenset({**BYTES, **MEMORY})


def _loss(metrics: Metrics, training: Training) -> Chart:
    held_out = metrics.evaluations
    steps = np.array([line.step for line in held_out], dtype=np.int64)
    losses = np.array([line.values.get("eval/loss", math.nan) for line in held_out])
    curves = [curve("training", training.steps, training.values("loss"))]
    if np.isfinite(losses).any():
        of = curve("held out", steps, losses)
        curves.append(Curve(of.name, of.x, of.y, of.low, of.high, dots=True))
    return Chart("loss", "Loss", "", curves, "nats per token")


def _plain(
    training: Training,
    key: str,
    title: str,
    unit: str,
    name: str,
    note: str = "",
    *,
    zero: bool = True,
) -> Chart:
    one = curve(title, training.steps, training.values(name))
    return Chart(key, title, unit, [one], note, zero)


def _memory(training: Training) -> Chart:
    curves = [
        curve(text, training.steps, values)
        for name, text in MEMORY.items()
        if np.isfinite(values := training.values(name)).any()
    ]
    return Chart("memory", "Memory of rank 0", "bytes", curves, zero=True)


def _moved(training: Training) -> Chart:
    bins = Bins.of(len(training.steps), MOST_POINTS // 4)
    moved = bins.sums(training.values("load/moved_experts"))
    if not np.isfinite(training.values("load/moved_experts")).any():
        moved = np.full(len(bins), np.nan)
    edges = bins.edges(training.steps, training.begun)
    centres = np.array([(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)])
    one = Curve("experts", places(centres), rounded(moved), [], [])
    return Chart("moved", "Experts that changed owners", "count", [one], "", True, edges)


def _number(training: Training, name: str) -> Floats:
    return training.values(name)


def _layers(training: Training, name: str) -> Floats:
    return training.over_layers(name)


def _per_step(
    training: Training,
    key: str,
    title: str,
    unit: str,
    names: dict[str, str],
    read: Callable[[Training, str], Floats],
) -> Chart:
    """What was added up since the line before, over the steps of the line."""
    curves = []
    for name, text in names.items():
        values = read(training, name)
        if np.isfinite(values).any():
            curves.append(curve(text, training.steps, values / training.intervals))
    note = "in a step, all layers" if read is _layers else "in a step, all ranks"
    return Chart(key, title, unit, curves, note, zero=True)


def _others(training: Training) -> list[Chart]:
    """Numbers that this page knows nothing of, each by its name."""
    names = [
        name
        for name in training.names()
        if name not in SHOWN and not name.startswith(("seconds/", "eval/"))
    ]
    return [
        _plain(training, f"other-{place}", name, "", name, zero=False)
        for place, name in enumerate(names)
    ]
