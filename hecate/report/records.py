"""What a run's folder says, as values. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Logged:
    """One line of ``metrics.jsonl``: ``step`` steps were done at Unix time ``time_s``.

    ``values``: numbers by name, NaN for those that were not finite. ``layers``: one number for each
    MoE layer by name, ``[Y]``. ``offset``: where the line begins in its file.
    """

    step: int
    time_s: float
    values: Mapping[str, float]
    layers: Mapping[str, Floats]
    offset: int = 0

    def phases(self) -> dict[str, float]:
        """Seconds of each phase since the line before, as rank 0 spent them."""
        return {
            name.removeprefix("seconds/"): value
            for name, value in self.values.items()
            if name.startswith("seconds/")
        }


@dataclass(frozen=True)
class Damage:
    """What of a file was passed over.

    ``cut``: the last line is unfinished. ``unreadable``: lines in it that are none. ``repeated``:
    lines of steps that were run once more further down, where the file goes ``back_to`` a step.
    """

    cut: bool = False
    unreadable: int = 0
    repeated: int = 0
    back_to: tuple[int, ...] = ()


@dataclass(frozen=True)
class Metrics:
    """The lines of ``metrics.jsonl``, each step once: of training, and of evaluations."""

    training: tuple[Logged, ...] = ()
    evaluations: tuple[Logged, ...] = ()
    damage: Damage = Damage()

    def in_order(self) -> Iterator[tuple[Logged, bool]]:
        """All lines, and whether each is an evaluation; of a step training comes first."""
        lines = [(line, False) for line in self.training]
        lines += [(line, True) for line in self.evaluations]
        yield from sorted(lines, key=lambda each: (each[0].step, each[1]))


@dataclass(frozen=True)
class Start:
    """The run was begun, or taken up again, when it had done ``step`` steps.

    What is not known is 0, or "". ``environment``: what it ran on, for people. ``cause``: why a
    launcher took it up again by itself.
    """

    step: int
    time_s: float = 0.0
    num_ranks: int = 0
    num_nodes: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    cause: str = ""


@dataclass(frozen=True)
class Recovery:
    """A job of ours went on by itself after ``step``: a rank failed in the step after ``at_step``.

    ``seconds``: until its first step was done, by what they went to.
    """

    step: int
    cause: str
    at_step: int
    ranks_before: int
    ranks_after: int
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class LoadSteps:
    """Where the loads of each step lie: those of ``steps[i]`` (from 1) begin at ``offsets[i]``.

    ``first_step`` of them is the one after ``begun``. ``source``: the file's name.
    """

    source: str = ""
    begun: int = 0
    steps: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    offsets: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    starts: tuple[Start, ...] = ()
    damage: Damage = Damage()
