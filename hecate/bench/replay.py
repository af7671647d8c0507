"""A trace as whole numbers, step by step, and its choices in the place of a router's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hecate.bench.routing_traces import Shares, choices_of, counts_of
from hecate.planner.load import Counts


def counted(
    shares: Callable[[int, int], Shares], *, steps: int, layers: int, num_tokens: int, top_k: int
) -> Counts:
    """The slots of each expert on one rank, ``[steps, Y, E]``; all ranks have the same."""
    return np.stack(
        [
            np.stack([counts_of(shares(step, layer), num_tokens, top_k) for layer in range(layers)])
            for step in range(steps)
        ]
    )


class Replay:
    """What the tokens of this rank choose. ``prepare`` makes a step's choices, before it is timed;
    after the last step of the trace they stay.

    Called with a layer and the router's own choices ``[T, K]``, it gives those of the trace; of
    another number of tokens, as in a model's first trial, it gives back the router's.
    """

    def __init__(self, counts_SYE: Counts, *, top_k: int, rank: int) -> None:
        self._counts_SYE, self._top_k, self._rank = counts_SYE, top_k, rank
        self._step = -1
        self._choices: list[torch.Tensor] = []

    def prepare(self, step: int) -> None:
        step = min(step, len(self._counts_SYE) - 1)
        if step == self._step:
            return
        self._step = step
        self._choices = [
            choices_of(counts_E, self._top_k, seed=(step * 997 + layer) * 997 + self._rank)
            for layer, counts_E in enumerate(self._counts_SYE[step])
        ]

    def __call__(self, layer: int, top_k_index_TK: torch.Tensor) -> torch.Tensor:
        chosen_TK = self._choices[layer] if self._choices else top_k_index_TK
        return chosen_TK if chosen_TK.shape == top_k_index_TK.shape else top_k_index_TK
