"""Loads that the expert benchmark replays, and routings that have exactly these loads. Pure.

A trace says for every step and layer which share of the slots each expert gets. Shares are the
whole job's; every rank routes its own tokens by them, so that all ranks are alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Shares = npt.NDArray[np.float64]

PERIOD = 10  # steps between two moves of a rotating hot set, and between two bursts
BURST = 2  # steps that a burst lasts


@dataclass(frozen=True)
class Trace:
    """``shares(step, layer)``: ``[E]`` that sum to 1. ``top_k``: choices of each token.

    ``stable``: whether re-sharding alone could balance the loads, once and for all. ``moves``:
    whether they differ from step to step.
    """

    name: str
    top_k: int
    stable: bool
    shares: Callable[[int, int], Shares]
    moves: bool = False


def balanced(num_experts: int) -> Shares:
    return np.full(num_experts, 1 / num_experts)


def hot_rank(num_experts: int, world_size: int, hot: int, imbalance: float) -> Shares:
    """The experts that rank ``hot`` owns under an even partition take ``imbalance`` times its part.

    ``imbalance``: the busiest rank's load over the mean, from 1 to ``world_size``.
    """
    if not 1 <= imbalance <= world_size:
        raise ValueError(f"an imbalance of {imbalance} over {world_size} ranks; expected 1 to that")
    owner_E = np.arange(num_experts) * world_size // num_experts
    own = owner_E == hot % world_size
    share = imbalance / world_size
    rest = (1 - share) / max(1, int((~own).sum()))
    return np.where(own, share / own.sum(), rest)


def hot_few(num_experts: int, world_size: int, turn: int, layer: int, imbalance: float) -> Shares:
    """Half of the experts that one rank owns under an even partition take that rank's load.

    Which rank and which half are drawn for each turn and layer, so that no placement that stays
    balances all turns: to swap whole ranks' experts once would, if these were hot together.
    """
    rng = np.random.default_rng([turn, layer])
    own = np.flatnonzero(
        np.arange(num_experts) * world_size // num_experts == rng.integers(world_size)
    )
    hot = rng.choice(own, size=max(1, len(own) // 2), replace=False)
    shares_E = np.full(num_experts, (1 - imbalance / world_size) / (num_experts - len(own)))
    shares_E[own] = 0.0
    shares_E[hot] = imbalance / world_size / len(hot)
    return shares_E


def one_hot(num_experts: int, hot: int, share: float) -> Shares:
    """One expert takes ``share`` of the tokens, the others the rest alike."""
    shares_E = np.full(num_experts, (1 - share) / (num_experts - 1))
    shares_E[hot] = share
    return shares_E


def hot_pair(num_experts: int, layer: int, share: float) -> Shares:
    """Two experts half of all experts apart take ``share`` of the slots, others in each layer."""
    shares_E = np.full(num_experts, (1 - share) / (num_experts - 2))
    hot = layer * num_experts // 4 % num_experts
    shares_E[[hot, (hot + num_experts // 2) % num_experts]] = share / 2
    return shares_E


def skewed(num_experts: int, layer: int, exponent: float) -> Shares:
    """The k-th most loaded expert takes in proportion to k^-``exponent``, shuffled by ``layer``."""
    shares_E = np.arange(1, num_experts + 1, dtype=np.float64) ** -exponent
    order_E = np.random.default_rng(layer).permutation(num_experts)
    shuffled_E: Shares = shares_E[order_E] / shares_E.sum()
    return shuffled_E


def some_idle(num_experts: int, idle: int) -> Shares:
    """The first ``idle`` experts get nothing; the others share all alike."""
    shares_E = np.zeros(num_experts)
    shares_E[idle:] = 1 / (num_experts - idle)
    return shares_E


def synthetic_traces(num_experts: int, world_size: int, top_k: int) -> tuple[Trace, ...]:
    """Every trace of the benchmark but the recorded one."""

    def hot(imbalance: float) -> Callable[[int, int], Shares]:
        return lambda step, layer: hot_rank(num_experts, world_size, layer, imbalance)

    def drawn(turn: int, layer: int) -> Shares:
        return hot_few(num_experts, world_size, turn, layer, 1.9 * world_size / 2)

    def rotating(step: int, layer: int) -> Shares:
        return drawn(step // PERIOD, layer)

    def burst(step: int, layer: int) -> Shares:
        if step % PERIOD < PERIOD - BURST:
            return balanced(num_experts)
        return drawn(step // PERIOD, layer)

    return (
        Trace("balanced", top_k, True, lambda step, layer: balanced(num_experts)),
        Trace("hot_1.5", top_k, True, hot(1.5 * world_size / 2)),
        Trace("hot_1.9", top_k, True, hot(1.9 * world_size / 2)),
        Trace("rotating", top_k, False, rotating, moves=True),
        Trace("burst", top_k, False, burst, moves=True),
        Trace("one_hot", 1, False, lambda step, layer: one_hot(num_experts, layer, 0.95)),
        Trace("idle", top_k, True, lambda step, layer: some_idle(num_experts, num_experts // 2)),
    )


def recorded_trace(name: str, counts_SYE: npt.NDArray[np.int64], top_k: int) -> Trace:
    """The loads of a run step by step, from its first; after its last step they stay."""
    totals_SY1 = counts_SYE.sum(2, keepdims=True)
    shares_SYE = counts_SYE / totals_SY1
    last = len(shares_SYE) - 1
    return Trace(
        name,
        top_k,
        False,
        lambda step, layer: shares_SYE[min(step, last), layer],
        moves=True,
    )


def counts_of(shares_E: Shares, num_tokens: int, top_k: int) -> npt.NDArray[np.int64]:
    """Whole slots for each expert: ``num_tokens * top_k`` in all, none above ``num_tokens``.

    Largest remainders first, ties to the lower expert. What an expert cannot take, since a token
    chooses it at most once, goes to the others in proportion.
    """
    slots = num_tokens * top_k
    wanted_E = shares_E * slots
    for _ in range(len(shares_E)):
        over_E = wanted_E > num_tokens
        if not over_E.any():
            break
        excess = float((wanted_E[over_E] - num_tokens).sum())
        wanted_E = np.where(over_E, num_tokens, wanted_E)
        room_E = np.where(wanted_E < num_tokens, wanted_E, 0.0)
        if room_E.sum() == 0:
            room_E = (wanted_E < num_tokens).astype(np.float64)
        if not room_E.any():  # all are full, and what is left over is rounding
            break
        wanted_E = wanted_E + excess * room_E / room_E.sum()
    counts_E = np.floor(wanted_E + 1e-9).astype(np.int64)
    for expert in np.argsort(-(wanted_E - counts_E), kind="stable"):
        if counts_E.sum() == slots:
            break
        if counts_E[expert] < num_tokens:
            counts_E[expert] += 1
    return counts_E


def choices_of(counts_E: npt.NDArray[np.int64], top_k: int, *, seed: int) -> torch.Tensor:
    """``[T, K]`` choices with these counts; no token chooses an expert twice.

    Slots in expert order go round the tokens, so that an expert's slots, at most T in a row, meet
    each token at most once. Which token is which follows from ``seed``.
    """
    slots_S = np.repeat(np.arange(len(counts_E)), counts_E)
    choices_TK = slots_S.reshape(top_k, -1).T
    order_T = np.random.default_rng(seed).permutation(len(choices_TK))
    return torch.from_numpy(np.ascontiguousarray(choices_TK[order_T]))
