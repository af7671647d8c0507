"""A contender's clock: it trains a few steps when it is asked to, and otherwise waits.

All contenders of a comparison live at once and take turns, so that a machine that slows down
slows all of them. Time between turns counts for nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from hecate.train.memory import peak_resident_bytes


@dataclass(frozen=True)
class Ready:
    """A contender is built; ``settings`` are those that it chose for itself."""

    settings: dict[str, str]


@dataclass(frozen=True)
class Turn:
    """``seconds`` for the steps of one turn, and each step's loss.

    From one rank, a loss is its share: the shares of all ranks add up to the mean over labels.
    """

    seconds: float
    losses: tuple[float, ...]
    peak_bytes: int


@dataclass(frozen=True)
class Failed:
    """A rank of a contender ended: the last line of its traceback."""

    reason: str


class TurnsOver(Exception):  # noqa: N818 - the normal end of a contender, not an error
    """Nobody asks for more steps."""


class Turns:
    """One rank's end of the conversation with the process that measures."""

    def __init__(self, connection: Connection, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._clock = clock
        self._losses: list[float] = []
        self._steps_left = 0
        self._started = 0.0

    def ready(self, **settings: str) -> None:
        """Report that everything is built, and wait for the first turn."""
        self._connection.send(Ready(settings))
        self._wait()

    def step_done(self, loss: float) -> None:
        """Count an optimizer step; at the end of a turn, report it and wait for the next one.

        Raises ``TurnsOver`` when there is none.
        """
        self._losses.append(loss)
        self._steps_left -= 1
        if self._steps_left == 0:
            seconds = self._clock() - self._started
            self._connection.send(Turn(seconds, tuple(self._losses), peak_resident_bytes()))
            self._wait()

    def _wait(self) -> None:
        self._losses.clear()
        try:
            self._steps_left = self._connection.recv()
        except EOFError:
            raise TurnsOver from None
        self._started = self._clock()
