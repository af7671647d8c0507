"""How many copies there is memory for, what is left out, and when layers take turns. Pure.

2502.02581, section 4.2: the copies of all layers are kept from forward to backward, and gradients
of one layer's. Re-materialization keeps one layer's of both. With several micro-batches gradients
of all layers' copies are kept until the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from collectives.placement import Placement
from hecate.planner.load import Loads

Rematerialize = bool | Literal["auto"]


@dataclass(frozen=True)
class Fitted:
    """What a step materializes after all; ``dropped`` copies had no room."""

    placements: tuple[Placement, ...]
    rematerialize: bool
    dropped: int


@dataclass(frozen=True)
class Room:
    """``budget_bytes`` of each rank for copies, whose sizes are by layer, and equal on all ranks.

    ``rematerialize``: ``auto`` where the copies of a step fit in no other way.
    """

    budget_bytes: int
    weight_bytes: tuple[int, ...]
    grad_bytes: tuple[int, ...]
    rematerialize: Rematerialize

    def slots_per_rank(self, *, accumulates: bool) -> int:
        """The most copies of each layer that fit on a rank: the paper's *m*."""
        turns = self.rematerialize is not False
        weights = max(self.weight_bytes) if turns else sum(self.weight_bytes)
        grads = sum(self.grad_bytes) if accumulates else max(self.grad_bytes)
        return self.budget_bytes // max(1, weights + grads)

    def fit(
        self,
        placements: tuple[Placement, ...],
        owners: tuple[Placement, ...],
        loads_YE: Loads,
        *,
        accumulates: bool,
    ) -> Fitted:
        """``placements`` themselves where they fit, or without the copies of least load."""
        copies = _copies_by_rank(placements, owners)
        turns = self.rematerialize is True
        if self.rematerialize == "auto":
            turns = not all(self._fits(of_rank, False, accumulates) for of_rank in copies.values())
        dropped: list[set[tuple[int, int]]] = [set() for _ in owners]
        for rank, of_rank in copies.items():
            coldest = sorted(
                (float(loads_YE[layer, expert]), layer, expert)
                for layer, experts in of_rank.items()
                for expert in experts
            )
            for _, layer, expert in coldest:
                if self._fits(of_rank, turns, accumulates):
                    break
                alone = {layer: of_rank[layer]}
                if turns and not accumulates and self._fits(alone, turns, accumulates):
                    continue  # the layers that are too large are others
                of_rank[layer].remove(expert)
                dropped[layer].add((expert, rank))
        fitted = tuple(
            _without(placement, gone) if gone else placement
            for placement, gone in zip(placements, dropped, strict=True)
        )
        return Fitted(fitted, turns, sum(map(len, dropped)))

    def _fits(self, of_rank: Mapping[int, Sequence[int]], turns: bool, accumulates: bool) -> bool:
        weights = [len(experts) * self.weight_bytes[layer] for layer, experts in of_rank.items()]
        grads = [len(experts) * self.grad_bytes[layer] for layer, experts in of_rank.items()]
        needed = max(weights) if turns else sum(weights)
        needed += sum(grads) if accumulates else max(grads)
        return needed <= self.budget_bytes


def _copies_by_rank(
    placements: Sequence[Placement], owners: Sequence[Placement]
) -> dict[int, dict[int, list[int]]]:
    """Rank -> layer -> the experts that it holds there without owning them."""
    found: dict[int, dict[int, list[int]]] = {}
    for layer, (placement, own) in enumerate(zip(placements, owners, strict=True)):
        if placement is own:
            continue
        for expert, (ranks, (owner,)) in enumerate(
            zip(placement.holders, own.holders, strict=True)
        ):
            for rank in ranks if len(ranks) > 1 else ():
                if rank != owner:
                    found.setdefault(rank, {}).setdefault(layer, []).append(expert)
    return found


def _without(placement: Placement, gone: set[tuple[int, int]]) -> Placement:
    holders = tuple(
        tuple(rank for rank in ranks if (expert, rank) not in gone)
        for expert, ranks in enumerate(placement.holders)
    )
    return Placement(holders, placement.world_size)
