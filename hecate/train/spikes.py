"""Which steps not to take: those whose loss or gradient stands out from the ones before. Pure.

A bad batch or a numerical accident shows as a loss or a gradient norm far above the recent ones.
Such a step is left out: its gradients are dropped, and nothing changes. Every rank judges the same
sums, so all decide alike. Median and MAD, unlike mean and deviation, are not moved by the spikes
themselves.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from hecate.config import Config

NORMAL_MAD = 1.4826  # the standard deviation of a normal distribution over its MAD
LEAST_SPREAD = 0.01  # of the median: a run without noise is not a run of spikes


class GuardConfig(Config):
    """What becomes of a step whose loss or gradient norm is not finite, or a spike.

    ``stop`` ends the run at one that is not finite, and looks for no spikes. ``skip`` leaves such
    steps out, and those above ``median + deviations * 1.4826 * MAD`` of the last ``window`` steps
    that were taken, once there are ``warmup`` of them. ``rewind_after`` steps left out in a row
    take weights and moments back to the newest checkpoint, where training goes on with the data
    that follow and the step number as it is (0: never); the run ends when that has happened
    ``rewinds`` times and is due again.
    """

    action: Literal["stop", "skip"] = "stop"
    window: int = Field(default=100, ge=2)
    warmup: int = Field(default=20, ge=2)
    deviations: float = Field(default=8.0, gt=0)
    rewind_after: int = Field(default=0, ge=0)
    rewinds: int = Field(default=3, ge=1)


@dataclass(frozen=True)
class Verdict:
    """What to do with a step, and why if it is not to be taken."""

    take: bool = True
    rewind: bool = False
    stop: bool = False
    reason: str = ""


class SpikeGuard:
    """Judges each step once, in order; remembers the last ones that were taken."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)
        self.skipped = 0
        """Steps left out since the run began."""
        self._in_a_row = 0
        self._rewinds = 0

    def judge(self, *, loss: float, norm: float) -> Verdict:
        """What to do with the step of this mean loss and global gradient norm."""
        reason = self._reason("loss", loss, self._losses) or self._reason(
            "gradient norm", norm, self._norms
        )
        if not reason:
            self._losses.append(loss)
            self._norms.append(norm)
            self._in_a_row = 0
            return Verdict()
        if self._config.action == "stop":
            return Verdict(take=False, stop=True, reason=reason)
        self.skipped += 1
        self._in_a_row += 1
        if not self._config.rewind_after or self._in_a_row < self._config.rewind_after:
            return Verdict(take=False, reason=reason)
        self._in_a_row = 0
        if self._rewinds == self._config.rewinds:
            return Verdict(take=False, stop=True, reason=reason)
        self._rewinds += 1
        return Verdict(take=False, rewind=True, reason=reason)

    def _reason(self, name: str, value: float, taken: deque[float]) -> str:
        if not math.isfinite(value):
            return f"{name} {value}"
        if self._config.action == "stop" or len(taken) < self._config.warmup:
            return ""
        limit = threshold(taken, self._config.deviations)
        return f"{name} {value:.4g} above {limit:.4g}" if value > limit else ""

    def state(self) -> dict[str, Any]:
        """For a checkpoint: JSON."""
        return {
            "losses": list(self._losses),
            "norms": list(self._norms),
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            "rewinds": self._rewinds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave; nothing of it is what a checkpoint without a guard says."""
        self._losses = deque(state.get("losses", ()), maxlen=self._config.window)
        self._norms = deque(state.get("norms", ()), maxlen=self._config.window)
        self.skipped = state.get("skipped", 0)
        self._in_a_row = state.get("in_a_row", 0)
        self._rewinds = state.get("rewinds", 0)


def threshold(taken: deque[float], deviations: float) -> float:
    """The largest value that does not stand out from ``taken``."""
    median = statistics.median(taken)
    spread = NORMAL_MAD * statistics.median(abs(value - median) for value in taken)
    return median + deviations * max(spread, LEAST_SPREAD * abs(median))
