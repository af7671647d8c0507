"""Where a run's time went, by its own clock. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hecate.report.bins import Bins
from hecate.report.curves import Training, places, rounded
from hecate.report.records import Metrics, Start

MOST_POINTS = 240
PAUSE_S = 60.0
PAUSE_TIMES = 10.0


@dataclass(frozen=True)
class Pause:
    """``seconds`` between two lines in which nothing was trained; ``taken_up``: by a start."""

    after_step: int
    seconds: float
    taken_up: bool


@dataclass(frozen=True)
class Spent:
    """Seconds from the beginning of the first line's interval to the last line.

    ``phases``: of rank 0, in their order. ``evaluations_s``: from a training line to the evaluation
    after it, and so with the checkpoint between them. ``rest_s``: what else lies between lines.
    ``pauses``: likewise, but because the run was not there, or stood still.
    """

    phases: dict[str, float] = field(default_factory=dict)
    evaluations_s: float = 0.0
    rest_s: float = 0.0
    pauses: tuple[Pause, ...] = ()

    @property
    def total_s(self) -> float:
        return sum(self.phases.values()) + self.evaluations_s + self.rest_s + self.paused_s

    @property
    def paused_s(self) -> float:
        return sum(pause.seconds for pause in self.pauses)


@dataclass(frozen=True)
class PhaseAreas:
    """Seconds of each phase in a step, ``seconds[phase][point]``, at steps ``x``."""

    names: list[str]
    x: list[float]
    seconds: list[list[float | None]]


def time_spent(metrics: Metrics, starts: Sequence[Start]) -> Spent:
    """From one line to the next, by the times that they bear."""
    phases: dict[str, float] = {}
    evaluations_s = rest_s = 0.0
    pauses: list[Pause] = []
    previous_step, previous_s = -1, math.nan
    for line, is_evaluation in metrics.in_order():
        gap_s = max(0.0, line.time_s - previous_s) if previous_step >= 0 else math.nan
        gap_s = gap_s if math.isfinite(gap_s) else 0.0
        if is_evaluation:
            evaluations_s += gap_s
        else:
            own = {name: s for name, s in line.phases().items() if math.isfinite(s)}
            for name, seconds in own.items():
                phases[name] = phases.get(name, 0.0) + seconds
            over_s = max(0.0, gap_s - sum(own.values()))
            taken_up = any(
                0 < start.step and previous_step <= start.step < line.step for start in starts
            )
            long = own and over_s > max(PAUSE_S, PAUSE_TIMES * sum(own.values()))
            if previous_step >= 0 and (taken_up or long):
                pauses.append(Pause(previous_step, over_s, taken_up))
            else:
                rest_s += over_s
        previous_step, previous_s = line.step, line.time_s
    return Spent(phases, evaluations_s, rest_s, tuple(pauses))


def phase_areas(training: Training) -> PhaseAreas:
    """How the phases of a step lay over each other as the run went on."""
    names = [name for name in training.names() if name.startswith("seconds/")]
    bins = Bins.of(len(training.steps), MOST_POINTS)
    return PhaseAreas(
        [name.removeprefix("seconds/") for name in names],
        places(bins.means(training.steps.astype(np.float64))),
        [rounded(bins.means(training.values(name) / training.intervals)) for name in names],
    )
