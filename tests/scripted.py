"""A policy that does as it is told, behind the production protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from collectives.placement import Placement
from hecate.planner.load import LoadWindow
from hecate.planner.quotas import Rule, route


@dataclass(frozen=True)
class Scripted:
    """Materializes ``copies[layer][expert]`` (ranks) in every step beside the owners."""

    copies: Sequence[dict[int, tuple[int, ...]]]
    rule: Rule = "even"
    name: str = "scripted"

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        if not self.copies:
            return owners
        return tuple(
            with_copies(own, copies) for own, copies in zip(owners, self.copies, strict=True)
        )

    def new_owners(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        return owners

    def route(self, counts_WE: np.ndarray, placement: Placement) -> np.ndarray:
        return route(counts_WE, placement, (0,) * placement.world_size, rule=self.rule)


def with_copies(owners: Placement, copies: dict[int, tuple[int, ...]]) -> Placement:
    """Ranks beyond the world are left out, so that one script serves worlds of any size."""
    holders = [
        tuple(sorted({*own, *(r for r in copies.get(e, ()) if r < owners.world_size)}))
        for e, own in enumerate(owners.holders)
    ]
    return Placement(tuple(holders), owners.world_size)


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
