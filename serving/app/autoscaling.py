"""How many replicas: so many that each has few requests that wait and few tokens in flight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

WAITING = "waiting"
TOKENS = "tokens_in_flight"


def replicas_wanted(
    waiting: float, tokens: float, *, target_waiting: float, target_tokens: float
) -> int:
    """Replicas for so many requests that wait and so many tokens in flight, of all together."""
    return max(1, math.ceil(waiting / target_waiting), math.ceil(tokens / target_tokens))


class LoadPolicy:
    """``replicas_wanted`` as Ray Serve's autoscaling policy; its bounds are Serve's to keep."""

    def __init__(self, target_waiting: float, target_tokens: float) -> None:
        self._target_waiting = target_waiting
        self._target_tokens = target_tokens

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        metrics = context.aggregated_metrics or {}
        wanted = replicas_wanted(
            _total(metrics.get(WAITING, {})),
            _total(metrics.get(TOKENS, {})),
            target_waiting=self._target_waiting,
            target_tokens=self._target_tokens,
        )
        return wanted, {}


def _total(by_replica: Mapping[Any, float]) -> float:
    return float(sum(by_replica.values()))
