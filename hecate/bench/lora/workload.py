"""Which adapter is asked for when: as popular and as large as published traces have it.

Of the Azure Functions trace by adapter, a tenth of them gets 70 to 73 % of the requests (Toppings'
artifact); ranks are 8 to 64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import log, log2

TOP_SHARE = 0.7  # of requests, which go to a tenth of the adapters
RANKS = (8, 16, 32, 64)
SHORTEST_BRIEF, LONGEST_BRIEF = 8, 64


@dataclass(frozen=True)
class Ask:
    """A request: when it comes, for which adapter, -1 for none."""

    at_s: float
    adapter: int


def popularity(adapters: int) -> list[float]:
    """Each adapter's share of the requests: a power law whose first tenth has ``TOP_SHARE``."""
    low, high = 0.0, 8.0
    shares: list[float] = []
    for _ in range(60):
        slope = (low + high) / 2
        weights = [(number + 1) ** -slope for number in range(adapters)]
        shares = [weight / sum(weights) for weight in weights]
        if sum(shares[: max(1, adapters // 10)]) < TOP_SHARE:
            low = slope
        else:
            high = slope
    return shares


def rank_of(adapter: int) -> int:
    """Ranks in turn, so that popular ones are of every size."""
    return RANKS[adapter % len(RANKS)]


def brief_prompt(token_s: float, load_s: float) -> int:
    """Tokens that are computed, at ``token_s`` each, while an adapter is loaded: a power of two.

    Loads often take longer than the prefill of nine prompts of ten (CaraServe 2401.11240). Beside
    that of longer ones they do not tell, and how long is long depends on the machine.
    """
    return 1 << int(log2(min(LONGEST_BRIEF, max(SHORTEST_BRIEF, load_s / token_s))))


def arrivals(
    count: int, rate: float, shares: Sequence[float], draw: Callable[[], float]
) -> list[Ask]:
    """Poisson arrivals of ``rate`` a second; ``draw``: evenly from 0 to 1."""
    bounds = list(accumulate(shares))
    at_s = 0.0
    asks = []
    for _ in range(count):
        at_s -= log(1.0 - draw()) / rate
        drawn = draw() * bounds[-1]
        adapter = next(n for n, bound in enumerate(bounds) if drawn <= bound)
        asks.append(Ask(at_s, adapter))
    return asks
