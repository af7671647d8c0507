"""Loads that are made up: skewed, and drifting as routers' loads do. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hecate.planner.load import Counts
from hecate.simulate.workload import LoadsConfig

Shares = npt.NDArray[np.float64]


class DriftingLoads:
    """Shares of all layers, step after step; the same for the same seed.

    A share is at most ``1 / top_k``, since a token chooses an expert once.
    """

    def __init__(
        self, config: LoadsConfig, num_layers: int, num_experts: int, top_k: int, *, seed: int
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._most = 1 / top_k
        base_E = -config.skew * np.log(np.arange(1, num_experts + 1))
        self._base_YE = np.stack([self._rng.permutation(base_E) for _ in range(num_layers)])
        self._drift, self._keep = config.drift, np.exp(-1 / config.memory_steps)
        self._away_YE = self._rng.standard_normal(self._base_YE.shape)

    def step(self) -> Shares:
        """The next step's shares, ``[Y, E]``, rows of which sum to 1."""
        fresh = self._rng.standard_normal(self._away_YE.shape)
        self._away_YE = self._keep * self._away_YE + np.sqrt(1 - self._keep**2) * fresh
        raw_YE = np.exp(self._base_YE + self._drift * self._away_YE)
        return _capped(raw_YE / raw_YE.sum(1, keepdims=True), self._most)

    def counts(self, shares_E: Shares, slots: int, world_size: int) -> Counts:
        """Slots of each rank for each expert, ``[W, E]``: ``slots`` choices a rank by chance."""
        counts_WE: Counts = self._rng.multinomial(slots, shares_E, size=world_size)
        return counts_WE.astype(np.int64)


def even_counts(slots: int, num_experts: int, world_size: int) -> Counts:
    """As ``even_choices`` makes them: slot after slot the next expert, each rank from its own."""
    each, more = divmod(slots, num_experts)
    counts_WE = np.full((world_size, num_experts), each, dtype=np.int64)
    first_W = np.arange(world_size) * slots % num_experts
    place_WE = (np.arange(num_experts)[None] - first_W[:, None]) % num_experts
    result: Counts = counts_WE + (place_WE < more)
    return result


def _capped(shares_YE: Shares, most: float) -> Shares:
    """What lies above ``most`` goes to the others in proportion."""
    for _ in range(shares_YE.shape[1]):
        above = shares_YE > most
        if not above.any():
            break
        excess_Y = np.where(above, shares_YE - most, 0.0).sum(1, keepdims=True)
        room_YE = np.where(above | (shares_YE == most), 0.0, shares_YE)
        room_Y = np.maximum(room_YE.sum(1, keepdims=True), 1e-300)
        shares_YE = np.minimum(shares_YE, most) + excess_Y * room_YE / room_Y
    return shares_YE
