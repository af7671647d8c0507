"""What a token costs, from what engines tell of the seconds that they computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.engine.protocol import EngineLoad
from serving.scheduling.applications.demand import Rates

KEPT = 0.98  # of all that was seen before, at each new piece
DOUBT_TOKENS = 64.0  # of each kind, that count for what was believed before


@dataclass(frozen=True)
class _Seen:
    steps: int
    prompt: int
    generated: int
    busy_s: float


class Calibration:
    """Seconds = prefill x tokens of prompts + decode x tokens of answers, fitted to the pieces
    between two looks at each engine, the newest counting most.

    Least squares with variances that grow with the seconds; where all pieces have the two kinds in
    one proportion, which says nothing of either, what was believed before decides.
    """

    def __init__(self, first: Rates) -> None:
        """``first``: what is believed until something was measured."""
        self.rates = first
        self._seen: dict[str, _Seen] = {}
        self._products = [[0.0, 0.0], [0.0, 0.0]]
        self._sums = [0.0, 0.0]
        self._believe()

    def look(self, loads: Sequence[tuple[str, EngineLoad]]) -> None:
        """How engines are now; one that was started anew begins anew."""
        seen = {
            name: _Seen(
                load.steps_total,
                load.prompt_tokens_total,
                load.generated_tokens_total,
                load.busy_s_total,
            )
            for name, load in loads
        }
        for name, now in seen.items():
            before = self._seen.get(name)
            if before is not None and before.busy_s < now.busy_s and before.steps < now.steps:
                self._add(before, now)
        self._seen = seen

    def _add(self, before: _Seen, now: _Seen) -> None:
        seconds = now.busy_s - before.busy_s
        tokens = (now.prompt - before.prompt, now.generated - before.generated)
        if min(tokens) < 0 or not any(tokens):
            return
        for i in (0, 1):
            self._sums[i] = KEPT * self._sums[i] + tokens[i]
            for j in (0, 1):
                product = tokens[i] * tokens[j] / seconds
                self._products[i][j] = KEPT * self._products[i][j] + product
        self._believe(1 - KEPT)
        (a, b), (_, d) = self._products
        u, v = self._sums
        det = a * d - b * b
        prefill_s, decode_s = (d * u - b * v) / det, (a * v - b * u) / det
        if prefill_s <= 0 or decode_s <= 0:  # one kind alone explains it
            prefill_s, decode_s = self.rates.prefill_token_s, self.rates.decode_token_s
            scale = seconds / (tokens[0] * prefill_s + tokens[1] * decode_s)
            share = 1 - KEPT
            prefill_s *= scale**share
            decode_s *= scale**share
        pace_s = self.rates.pace_s
        if tokens[1]:
            pace_s += (1 - KEPT) * (seconds / (now.steps - before.steps) - pace_s)
        self.rates = Rates(prefill_s, decode_s, pace_s)

    def _believe(self, weight: float = 1.0) -> None:
        """As if so many tokens had just cost what they are believed to cost."""
        rates = (self.rates.prefill_token_s, self.rates.decode_token_s)
        for i, rate_s in enumerate(rates):
            self._sums[i] += weight * DOUBT_TOKENS
            self._products[i][i] += weight * DOUBT_TOKENS / rate_s
