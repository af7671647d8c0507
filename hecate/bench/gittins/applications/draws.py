"""What a small model cannot decide, drawn from the shape of its application's class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from hecate.bench.gittins.classes import SHAPES, LlmUnit, Part, Shape, Spread
from hecate.bench.gittins.workload import MOST_ROUNDS

# Turns of ShareGPT, as the vLLM paper (2309.06180) has their mean lengths.
CHAT = Shape(
    "chat",
    0,
    (Part((LlmUnit("turn", Spread(161.0, 1.0), Spread(338.0, 0.8)),), again=0.7),),
    (0.0, 0.0, 0.0),
)
_BY_NAME = {shape.name: shape for shape in SHAPES}
# The class whose published shape each application has.
SHAPE_OF: Mapping[str, Shape] = MappingProxyType(
    {
        "chat": CHAT,
        "code_feedback": _BY_NAME["code_feedback"],
        "fact_check": _BY_NAME["factool_kbqa"],
        "map_reduce": _BY_NAME["langchain_mapreduce"],
        "react": _BY_NAME["react_fever"],
    }
)


class Draws:
    """Of one instance; lengths are multiplied by ``length``, counts and rounds are as published."""

    def __init__(self, rng: np.random.Generator, shape: Shape, length: float) -> None:
        self._rng = rng
        self._length = length
        self._parts = shape.parts
        self._units = {
            unit.name: unit
            for part in shape.parts
            for unit in part.units
            if isinstance(unit, LlmUnit)
        }

    def output(self, unit: str) -> int:
        """Tokens of one answer."""
        return self._tokens(self._units[unit].output)

    def prompt(self, unit: str) -> int:
        """Tokens of one prompt."""
        return self._tokens(self._units[unit].prompt)

    def calls(self, unit: str) -> int:
        """How many side by side."""
        return max(1, round(self._amount(self._units[unit].calls)))

    def rounds(self) -> int:
        """How often the first part is gone through."""
        rounds = 1
        while rounds < MOST_ROUNDS and self._rng.random() < self._parts[0].again:
            rounds += 1
        return rounds

    def happens(self, unit: str) -> bool:
        """Whether the part of ``unit`` is gone through at all."""
        part = next(p for p in self._parts if any(each.name == unit for each in p.units))
        return bool(self._rng.random() < part.chance)

    def choose(self, count: int) -> int:
        """One of so many."""
        return int(self._rng.integers(count))

    def seconds(self, mean_s: float) -> float:
        """Of somebody who thinks."""
        return float(self._rng.exponential(mean_s))

    def _tokens(self, spread: Spread) -> int:
        return max(1, round(self._amount(spread) * self._length))

    def _amount(self, spread: Spread) -> float:
        variance = math.log(1 + spread.cv**2)
        z = float(self._rng.standard_normal())
        return spread.mean * math.exp(math.sqrt(variance) * z - variance / 2)
