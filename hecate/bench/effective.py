"""What of a run's time went into steps that count, and what each failure cost. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

SETTLED = 3  # steps after a start that may be slower than others
NEAR = 16  # undisturbed steps that say what a disturbed one would have taken
AFTER_SAVE = 4  # steps in which what a save costs comes up


@dataclass(frozen=True)
class Loss:
    """One failure: ``step`` is where the run went on from, at ``killed_s`` of the same clock.

    ``work_s``: what was done after that step and is computed again. ``back_s``: from the kill until
    the first step of the new start was done, less what a step takes.
    """

    step: int
    killed_s: float
    work_s: float
    back_s: float


@dataclass(frozen=True)
class Course:
    """The steps that count, from the first to the last, by when they were done.

    ``done_s[i]``: of step ``first + i``, in seconds of one clock. Only their last computation is in
    it, so that between two of them lie the failures, if any, that came between.
    """

    first: int
    done_s: tuple[float, ...]

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, float]]) -> Course:
        """Of the lines of ``metrics.jsonl`` that have a loss, one a step."""
        steps = [int(line["step"]) for line in lines]
        if steps != list(range(steps[0], steps[0] + len(steps))):
            raise ValueError(f"a line for each step, in order, is needed; got {steps[:5]}...")
        return cls(steps[0], tuple(line["time_s"] for line in lines))

    @property
    def steps(self) -> int:
        return len(self.done_s) - 1

    @property
    def step_s(self) -> float:
        """The median step, which saves and failures leave as it is."""
        return median(after - before for before, after in pairwise(self.done_s))

    def paced(self, step_s: float, ended_s: float) -> float:
        """Steps that count, at the pace of ``step_s``, over the time until ``ended_s``.

        A run that never got over a failure has no step behind it, but it took its time.
        """
        return self.steps * step_s / (max(ended_s, self.done_s[-1]) - self.done_s[0])

    def effective(self, kills_s: Sequence[float], *, saves_s: float, ended_s: float) -> float:
        """The share of the time until ``ended_s`` that failures and saves did not take.

        A failure took what its step and the ``SETTLED`` after it were longer than the median of
        the undisturbed steps near by, work that was done again included; saves took ``saves_s``.
        A machine that is faster at one time than at another changes nothing in that.
        """
        gaps = [after - before for before, after in pairwise(self.done_s)]
        hit: set[int] = set()
        for killed_s in kills_s:
            first = next((i for i, done_s in enumerate(self.done_s[1:]) if done_s > killed_s), None)
            if first is not None:
                hit |= set(range(first, min(first + 1 + SETTLED, len(gaps))))
        calm = [i for i in range(len(gaps)) if i not in hit]
        lost_s = saves_s + max(ended_s - self.done_s[-1], 0.0)
        for i in hit:
            near = sorted(calm, key=lambda other: abs(other - i))[:NEAR]
            lost_s += gaps[i] - median(gaps[other] for other in near)
        return 1 - lost_s / (max(ended_s, self.done_s[-1]) - self.done_s[0])

    def losses(self, kills_s: Sequence[float]) -> list[Loss]:
        """What the kills at ``kills_s`` cost; one that came after the last step is left out."""
        found = []
        for killed_s in kills_s:
            after = next((i for i, done_s in enumerate(self.done_s) if done_s > killed_s), 0)
            if not after:
                continue
            before_s, back_s = self.done_s[after - 1], self.done_s[after]
            found.append(
                Loss(
                    self.first + after - 1,
                    killed_s,
                    killed_s - before_s,
                    back_s - killed_s - self.step_s,
                )
            )
        return found

    def save_stall_s(self, every: int) -> float:
        """What a save costs: by how much the ``AFTER_SAVE`` steps after one are longer.

        Longer than the median step that is not among them; the median over the saves.
        """
        gaps = [after - before for before, after in pairwise(self.done_s)]
        numbered = list(enumerate(gaps, self.first + 1))[SETTLED:]
        near = {
            saved: [gap for step, gap in numbered if saved < step <= saved + AFTER_SAVE]
            for saved in range(every, self.first + len(gaps), every)
        }
        whole = [group for group in near.values() if len(group) == AFTER_SAVE]
        usual = median(
            gap for step, gap in numbered if step < every or (step - 1) % every >= AFTER_SAVE
        )
        return median([sum(group) - usual * len(group) for group in whole] or [0.0])


def best_interval(*, step_s: float, save_s: float, mean_time_between_failures_s: float) -> int:
    """Steps between saves that lose least: Young's sqrt(2 C M) (1974), at least one step."""
    seconds = math.sqrt(2 * max(save_s, 0.0) * mean_time_between_failures_s)
    return max(1, round(seconds / step_s))
