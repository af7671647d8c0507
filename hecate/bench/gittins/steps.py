"""How long a step of an engine takes, by what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from serving.scheduling.applications.demand import Rates


@dataclass(frozen=True)
class StepWork:
    """``rows``: tokens of answers, each after ``context`` tokens, of all together. ``prompt``:
    tokens of prompts, which attend to ``pairs`` pairs of tokens."""

    rows: int
    context: int
    prompt: int
    pairs: float


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a step, of one of each thing in it."""

    base_s: float
    row_s: float
    context_s: float
    prompt_s: float
    pair_s: float

    def seconds(self, work: StepWork) -> float:
        return (
            self.base_s
            + self.row_s * work.rows
            + self.context_s * work.context
            + self.prompt_s * work.prompt
            + self.pair_s * work.pairs
        )

    def rates(self, sequences: int, context: int) -> Rates:
        """What a token costs where ``sequences`` decode at once, each after ``context`` tokens."""
        full_s = self.seconds(StepWork(sequences, sequences * context, 0, 0.0))
        token_s = self.prompt_s + self.pair_s * context / 2
        return Rates(token_s, full_s / sequences, full_s)

    def enough(self, most: int, context: int, share: float) -> int:
        """The fewest sequences that get ``share`` of the tokens a second that ``most`` get."""
        least_s = self.rates(most, context).decode_token_s
        counts = range(1, most + 1)
        return next(n for n in counts if share * self.rates(n, context).decode_token_s <= least_s)

    def scaled(self, factor: float) -> StepTimes:
        return StepTimes(*(factor * each for each in astuple(self)))


def fit(measured: Sequence[tuple[StepWork, float]]) -> StepTimes:
    """The times, none negative, that come closest to what was measured, each by its share."""
    rows = np.array([(1.0, *astuple(work)) for work, _ in measured])
    seconds = np.array([each for _, each in measured])
    scaled = rows / seconds[:, None]
    kept = list(range(rows.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(scaled[:, kept], np.ones(len(seconds)), rcond=None)
        if (found >= 0).all():
            break
        del kept[int(np.argmin(found * rows.mean(axis=0)[kept]))]
    times = np.zeros(rows.shape[1])
    times[kept] = found
    return StepTimes(*(float(each) for each in times))
