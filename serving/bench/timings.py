"""When the tokens of an answer came, and what that says of many answers together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """One request, in seconds from when it was to be sent.

    ``first_s`` and ``last_s``: its first and its last token. ``late_s``: how much later it was
    really sent. ``tokens``: of its answer. ``error``: why there is no whole answer.
    """

    first_s: float
    last_s: float
    tokens: int
    late_s: float = 0.0
    error: str = ""

    @property
    def per_token_s(self) -> float | None:
        """Between two tokens, on average (TPOT); None where there are not two."""
        if self.tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.tokens - 1)


@dataclass(frozen=True)
class Latencies:
    """Percentiles over the requests that were answered; NaN where none was."""

    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    answered: int
    failed: int
    late_p99_s: float


def latencies(timings: Iterable[Timing]) -> Latencies:
    timings = list(timings)
    good = [timing for timing in timings if not timing.error]
    first = [timing.first_s for timing in good]
    each = [t for timing in good if (t := timing.per_token_s) is not None]
    return Latencies(
        percentile(first, 50),
        percentile(first, 99),
        percentile(each, 50),
        percentile(each, 99),
        answered=len(good),
        failed=len(timings) - len(good),
        late_p99_s=percentile([timing.late_s for timing in good], 99),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of all are not above; NaN of none."""
    if not values:
        return math.nan
    ranked = sorted(values)
    return ranked[max(0, math.ceil(percent / 100 * len(ranked)) - 1)]
