"""Plans: who owns and who holds each expert in one step, as values that can be compared. Pure."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from collectives.placement import Placement

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Replicas:
    """Copies of all layers beyond the owners': copy i is of ``expert[i]`` of ``layer[i]``.

    It goes to ``rank[i]``. Three int32 arrays of equal length, sorted by layer, expert and rank,
    without repeats.
    """

    layer: Ids
    expert: Ids
    rank: Ids

    def __post_init__(self) -> None:
        lengths = {len(self.layer), len(self.expert), len(self.rank)}
        if len(lengths) != 1:
            raise ValueError(
                f"{len(self.layer)} layers, {len(self.expert)} experts and {len(self.rank)} ranks "
                "of copies; expected as many of each"
            )

    @classmethod
    def none(cls) -> Replicas:
        """No copy at all."""
        empty = np.zeros(0, dtype=np.int32)
        return cls(empty, empty, empty)

    @classmethod
    def of(cls, triples: Sequence[tuple[int, int, int]]) -> Replicas:
        """From (layer, expert, rank) in any order."""
        table = np.array(sorted(triples), dtype=np.int32).reshape(-1, 3)
        return cls(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy())

    def __len__(self) -> int:
        return len(self.layer)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Replicas)
            and np.array_equal(self.layer, other.layer)
            and np.array_equal(self.expert, other.expert)
            and np.array_equal(self.rank, other.rank)
        )

    def triples(self) -> list[tuple[int, int, int]]:
        """(layer, expert, rank) of each copy, sorted."""
        rows = zip(self.layer.tolist(), self.expert.tolist(), self.rank.tolist(), strict=True)
        return list(rows)

    def of_layers(self, keep_Y: npt.NDArray[np.bool_]) -> Replicas:
        """The copies of those layers for which ``keep_Y[layer]``."""
        kept = keep_Y[self.layer]
        return Replicas(self.layer[kept], self.expert[kept], self.rank[kept])


def owners_table(owners: Sequence[Placement], num_experts: int) -> Ids:
    """The rank that owns each expert, ``[Y, E]``; 0 beyond a layer's experts, which have no load.

    Raises ``ValueError`` for a layer in which an expert has not just one owner.
    """
    owners_YE = np.zeros((len(owners), num_experts), dtype=np.int32)
    for row, own in zip(owners_YE, owners, strict=True):
        row[: own.num_chunks] = own.owners
    return owners_YE


def replicas_to_placements(
    owners: Sequence[Placement], replicas: Replicas
) -> tuple[Placement, ...]:
    """Who holds what: each layer's owners and copies; ``owners[layer]`` itself where none is made.

    Raises ``ValueError`` where a copy is of a layer, an expert or a rank that does not exist.
    """
    added: dict[int, dict[int, list[int]]] = {}
    for layer, expert, rank in replicas.triples():
        if not (0 <= layer < len(owners) and 0 <= expert < owners[layer].num_chunks):
            raise ValueError(
                f"a copy of expert {expert} of layer {layer} on rank {rank}; expected one of "
                f"{len(owners)} layers and of their experts"
            )
        added.setdefault(layer, {}).setdefault(expert, []).append(rank)
    result = list(owners)
    for layer, ranks_by_expert in added.items():
        holders = list(owners[layer].holders)
        for expert, ranks in ranks_by_expert.items():
            holders[expert] = tuple(sorted({*holders[expert], *ranks}))
        result[layer] = Placement(tuple(holders), owners[layer].world_size)
    return tuple(result)


@dataclass(frozen=True)
class Plan:
    """One step: each layer's owners, and its holders while the step lasts, owners among them."""

    step: int
    owners: tuple[Placement, ...]
    placements: tuple[Placement, ...]

    def __post_init__(self) -> None:
        if len(self.owners) != len(self.placements):
            raise ValueError(
                f"a plan of {len(self.owners)} layers' owners and {len(self.placements)} layers' "
                "holders; expected as many of each"
            )
        for layer, (own, all_of_them) in enumerate(zip(self.owners, self.placements, strict=True)):
            if not own.is_partition or not all_of_them.contains(own):
                raise ValueError(
                    f"layer {layer}: owners {own.holders}, holders {all_of_them.holders}; "
                    "expected one owner for each expert, who is among its holders"
                )

    @property
    def num_copies(self) -> int:
        """Copies beyond the owners', over all layers."""
        return sum(len(ranks) - 1 for each in self.placements for ranks in each.holders)

    @cached_property
    def layer_digests(self) -> tuple[int, ...]:
        """63 bits for each layer, which tell its owners and holders from others."""
        return tuple(
            _hash([*_numbers(own), *_numbers(all_of_them)])
            for own, all_of_them in zip(self.owners, self.placements, strict=True)
        )

    def digest(self) -> int:
        """63 bits that tell this plan from others, the same in every process."""
        return _hash([self.step, *self.layer_digests])


def _numbers(placement: Placement) -> list[int]:
    numbers = [placement.world_size, placement.num_chunks]
    for ranks in placement.holders:
        numbers += [len(ranks), *ranks]
    return numbers


def _hash(numbers: Sequence[int]) -> int:
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1
