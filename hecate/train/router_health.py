"""How the routers spread their tokens, from the counts of all ranks. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass
class RouterTally:
    """Adds up the slots of every expert over steps until they are logged."""

    num_experts_Y: Sequence[int]
    counts_YE: torch.Tensor | None = None

    def add(self, counts_YE: torch.Tensor) -> None:
        """``counts_YE``: [Y, E] int64, CPU, of one step over all ranks."""
        self.counts_YE = counts_YE.clone() if self.counts_YE is None else self.counts_YE + counts_YE

    def figures(self) -> dict[str, list[float]]:
        """One number for each layer: a collapse shows in few steps, an expert dies over many."""
        assert self.counts_YE is not None, "no step was added"
        rows = [
            row[:num_experts]
            for row, num_experts in zip(self.counts_YE.tolist(), self.num_experts_Y, strict=True)
        ]
        return {
            "router/entropy": [routing_entropy(row) for row in rows],
            "router/dead_experts": [float(row.count(0)) for row in rows],
        }


def routing_entropy(tokens_E: Sequence[int]) -> float:
    """The entropy of the experts' shares over that of equal shares.

    1 where all experts have as much, 0 where one has everything, or nothing is there; a single
    expert has its share.
    """
    total = sum(tokens_E)
    if not total:
        return 0.0
    if len(tokens_E) == 1:
        return 1.0
    shares = [tokens / total for tokens in tokens_E if tokens]
    return max(0.0, -sum(share * math.log(share) for share in shares)) / math.log(len(tokens_E))
