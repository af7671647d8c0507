"""A policy that does as it is told, behind the production protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from collectives.placement import Placement
from hecate.planner.load import LoadWindow
from hecate.planner.policies import Policy
from hecate.planner.quotas import Rule, route


@dataclass(frozen=True)
class Scripted(Policy):
    """Materializes ``copies[layer][expert]`` (ranks) in every step beside the owners.

    ``late[layer]``: copies that are added once the counts are known.
    """

    copies: Sequence[dict[int, tuple[int, ...]]]
    rule: Rule = "even"
    late: Sequence[dict[int, tuple[int, ...]]] = ()
    name: str = "scripted"

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        if not self.copies:
            return owners
        return tuple(
            with_copies(own, copies) for own, copies in zip(owners, self.copies, strict=True)
        )

    def after_gate(self, layer: int, counts_WE: np.ndarray, placement: Placement) -> Placement:
        return with_copies(placement, self.late[layer]) if self.late else placement

    def route(self, counts_WE: np.ndarray, placement: Placement) -> np.ndarray:
        return route(counts_WE, placement, (0,) * placement.world_size, rule=self.rule)


def with_copies(placement: Placement, copies: dict[int, tuple[int, ...]]) -> Placement:
    """Ranks beyond the world are left out, so that one script serves worlds of any size."""
    holders = [
        tuple(sorted({*ranks, *(r for r in copies.get(e, ()) if r < placement.world_size)}))
        for e, ranks in enumerate(placement.holders)
    ]
    return Placement(tuple(holders), placement.world_size)


@dataclass(frozen=True)
class Restless(Scripted):
    """Copies every other expert to the next rank, and moves every owner on after each step."""

    copies: Sequence[dict[int, tuple[int, ...]]] = ()
    rule: Rule = "weighted"
    name: str = "restless"

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        return tuple(
            with_copies(
                own,
                {
                    e: ((owner + 1) % own.world_size,)
                    for e, owner in enumerate(own.owners)
                    if (e + step) % 2 == 0
                },
            )
            for own in owners
        )

    def new_owners(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        return tuple(
            Placement.from_owners(
                [(owner + 1) % own.world_size for owner in own.owners], own.world_size
            )
            for own in owners
        )
