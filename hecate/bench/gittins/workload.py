"""Applications to serve: instances of the nine classes, and when they come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hecate.bench.gittins.classes import SHAPES, LlmUnit, Part, Shape, Spread, Unit
from serving.scheduling.applications.traces import Call, Kind, Trace, UnitRun

SAME_SHARE = 0.3
MOST_ROUNDS = 40
CONTEXT = 4096
"""No prompt or answer is longer."""


@dataclass(frozen=True)
class Scale:
    """What is multiplied with: ``length`` tokens, ``tool`` the seconds of tools."""

    length: float = 1.0
    tool: float = 1.0


@dataclass(frozen=True)
class Job:
    """An instance that is to be served. ``plan``: its units and their calls, of which a server
    learns each when it comes; ``at_s``: when it comes."""

    name: str
    instance: str
    at_s: float
    plan: Trace
    deadline_s: float = math.inf
    tenant: str = ""


class Instances:
    """Draws instances of a class.

    Of the variance of a unit's lengths, as logarithms, ``SAME_SHARE`` lies between instances and
    the rest between calls of one: a long answer comes of a long task.
    """

    def __init__(self, rng: np.random.Generator, scale: Scale) -> None:
        self._rng = rng
        self._scale = scale

    def draw(self, shape: Shape) -> Trace:
        """Not a function of what was drawn before, but for the generator's state."""
        own: dict[str, float] = {}
        counts: dict[str, int] = {}
        for part in shape.parts:
            for unit in (*part.units, *part.between):
                own[unit.name] = float(self._rng.standard_normal())
                if isinstance(unit, LlmUnit):
                    counts[unit.name] = max(1, round(self._amount(unit.calls)))
        for part in shape.parts:
            for unit in part.units:
                if isinstance(unit, LlmUnit) and unit.like:
                    counts[unit.name] = counts[unit.like]
        units = [unit for part in shape.parts for unit in self._walk(part)]
        by_name = {unit.name: unit for part in shape.parts for unit in part.units}
        return Trace(tuple(self._run(unit, own, counts, by_name) for unit in units))

    def _walk(self, part: Part) -> list[Unit]:
        if self._rng.random() >= part.chance:
            return []
        walked = list(part.units)
        for _ in range(MOST_ROUNDS - 1):
            if self._rng.random() >= part.again:
                break
            walked += [*part.between, *part.units]
        return walked

    def _run(
        self,
        unit: Unit,
        own: dict[str, float],
        counts: dict[str, int],
        by_name: dict[str, Unit],
    ) -> UnitRun:
        if not isinstance(unit, LlmUnit):
            seconds = self._amount(unit.seconds) * self._scale.tool
            return UnitRun(unit.name, unit.kind, seconds=seconds)
        longer = 1.0
        if unit.lists:
            listed = by_name[unit.lists]
            assert isinstance(listed, LlmUnit)
            longer = counts[unit.lists] / listed.calls.mean
        drawn = self._rng.standard_normal((2, counts[unit.name]))
        z = math.sqrt(SAME_SHARE) * own[unit.name] + math.sqrt(1 - SAME_SHARE) * drawn
        prompts = self._tokens(unit.prompt, z[0], 1.0)
        outputs = self._tokens(unit.output, z[1], longer)
        calls = tuple(Call(*lengths) for lengths in zip(prompts, outputs, strict=True))
        return UnitRun(unit.name, Kind.LLM, calls)

    def _tokens(self, spread: Spread, z: NDArray[np.float64], longer: float) -> list[int]:
        tokens = _lognormal(spread, z) * (longer * self._scale.length)
        most = max(1, int(CONTEXT * self._scale.length))
        return [int(each) for each in np.clip(np.rint(tokens), 1, most)]

    def _amount(self, spread: Spread) -> float:
        if not spread.cv:
            return spread.mean
        return float(_lognormal(spread, self._rng.standard_normal(1))[0])


def _lognormal(spread: Spread, z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Amounts that lie ``z`` standard deviations from the median, on the logarithmic scale."""
    variance = math.log(1 + spread.cv**2)
    amounts: NDArray[np.float64] = spread.mean * np.exp(math.sqrt(variance) * z - variance / 2)
    return amounts


def history(rng: np.random.Generator, scale: Scale, each: int) -> dict[str, list[Trace]]:
    """``each`` instances of every class, as a server has seen them before the run."""
    instances = Instances(rng, scale)
    return {shape.name: [instances.draw(shape) for _ in range(each)] for shape in SHAPES}


def jobs(rng: np.random.Generator, scale: Scale, count: int) -> list[Job]:
    """``count`` instances in random order, as many of each class as its percentage says, all there
    at once; what is left over when percentages do not divide ``count`` goes to the largest."""
    shapes: list[Shape] = []
    for shape in SHAPES:
        shapes += [shape] * max(1, count * shape.percent // 100)
    most = max(SHAPES, key=lambda shape: shape.percent)
    shapes += [most] * (count - len(shapes))
    order = rng.permutation(len(shapes))[:count]
    instances = Instances(rng, scale)
    return [
        Job(shapes[place].name, f"{number}", 0.0, instances.draw(shapes[place]))
        for number, place in enumerate(order)
    ]


def poisson(rng: np.random.Generator, count: int, rate: float) -> list[float]:
    """Times of ``count`` arrivals, ``rate`` a second on average."""
    return [float(at_s) for at_s in np.cumsum(rng.exponential(1 / rate, count))]


def resampled(
    rng: np.random.Generator, times_s: Sequence[float], count: int, rate: float
) -> list[float]:
    """``count`` arrivals, the time between two drawn from those of a trace: as uneven as there. All
    are stretched alike, so that there are ``rate`` a second."""
    drawn_s = rng.choice(np.diff(np.asarray(times_s)), count)
    at_s = np.cumsum(drawn_s)
    return [float(when_s) for when_s in at_s * (count / rate / max(float(at_s[-1]), 1e-9))]
