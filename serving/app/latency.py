"""How long answers take, as the replica that gives them sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.request import Delta


@dataclass(frozen=True)
class LatencyTotals:
    """Sums since a replica began; a mean over any time is a quotient of differences.

    ``first_tokens``: requests whose first token came, ``first_token_s`` after they did.
    ``later_tokens``: of answers that ended, all but their first, in ``later_token_s``.
    """

    first_tokens: int = 0
    first_token_s: float = 0.0
    later_tokens: int = 0
    later_token_s: float = 0.0


@dataclass
class _Timed:
    begun_s: float
    waits: bool = True
    answers: dict[int, tuple[float, int]] = field(default_factory=dict)  # first token, tokens


class Latency:
    """Times requests from ``begin`` on, by their deltas; seconds are the caller's."""

    def __init__(self) -> None:
        self.totals = LatencyTotals()
        self._open: dict[str, _Timed] = {}

    def begin(self, request_id: str, now_s: float) -> None:
        self._open[request_id] = _Timed(now_s)

    def take(self, delta: Delta, now_s: float) -> None:
        timed = self._open.get(delta.request_id)
        if timed is None or not (delta.tokens or timed.answers.get(delta.index)):
            return
        had = self.totals
        if timed.waits:
            timed.waits = False
            waited_s = had.first_token_s + now_s - timed.begun_s
            self.totals = had = LatencyTotals(
                had.first_tokens + 1, waited_s, had.later_tokens, had.later_token_s
            )
        first_s, tokens = timed.answers.get(delta.index, (now_s, 0))
        tokens += len(delta.tokens)
        timed.answers[delta.index] = first_s, tokens
        if delta.finish is not None and tokens > 1:
            self.totals = LatencyTotals(
                had.first_tokens,
                had.first_token_s,
                had.later_tokens + tokens - 1,
                had.later_token_s + now_s - first_s,
            )

    def end(self, request_id: str) -> None:
        """Forget a request, answered or not."""
        self._open.pop(request_id, None)
