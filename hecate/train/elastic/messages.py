"""What a supervisor and its members tell each other, over a pipe for each member."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hecate.train.run import TrainResult


@dataclass(frozen=True)
class Join:
    """To a member: be ``rank`` of ``world_size``; the others are met through the file ``store``.

    ``generation`` comes back in each answer, so that a late one of an earlier generation is known.
    ``cause``: why the one before failed. ``peak_flops``: of a rank, if one before measured it.
    """

    generation: int
    rank: int
    world_size: int
    store: Path
    resume: str
    cause: str
    peak_flops: float = 0.0


@dataclass(frozen=True)
class End:
    """To a member: there is nothing more to do."""


@dataclass(frozen=True)
class Joined:
    """All ranks have met."""

    generation: int


@dataclass(frozen=True)
class Measured:
    """What a rank of this machine can compute, at most, in floating-point operations a second."""

    generation: int
    peak_flops: float


@dataclass(frozen=True)
class Began:
    """Step number ``step`` (the first is 0) begins."""

    generation: int
    step: int


@dataclass(frozen=True)
class Left:
    """A collective failed; this member is free to join again. ``why``: its message."""

    generation: int
    why: str


@dataclass(frozen=True)
class Done:
    """The run came to its end, or to one that was asked for."""

    generation: int
    result: TrainResult


@dataclass(frozen=True)
class Failed:
    """The member ends with ``exit_code``; 2 is for what the user can mend: no use to try again."""

    generation: int
    message: str
    exit_code: int


Answer = Joined | Measured | Began | Left | Done | Failed
