"""Placements: which ranks hold which chunks (2502.02581, section 3.1). Pure.

A *chunk* is one expert's weights, contiguous. A placement is a set of (chunk, rank) pairs of one
layer; a *partition* gives every chunk exactly one holder, its owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Placement:
    """Which of ``world_size`` ranks hold each chunk: ``holders[chunk]``, ascending, never empty."""

    holders: tuple[tuple[int, ...], ...]
    world_size: int

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ValueError(f"placement over {self.world_size} ranks; expected at least 1")
        for chunk, ranks in enumerate(self.holders):
            if not ranks or list(ranks) != sorted(set(ranks)):
                raise ValueError(
                    f"chunk {chunk} is held by {ranks}; expected one or more ranks, ascending"
                )
            if ranks[0] < 0 or ranks[-1] >= self.world_size:
                raise ValueError(
                    f"chunk {chunk} is held by {ranks}; expected ranks in [0, {self.world_size})"
                )

    @classmethod
    def even(cls, num_chunks: int, world_size: int, *, rotation: int = 0) -> Placement:
        """Contiguous blocks that differ by at most one chunk, in chunk order.

        ``rotation`` shifts the ranks, so that over many layers the larger blocks (or, with more
        ranks than chunks, the only ones) fall on every rank in turn.
        """
        owners = [
            (_block_of(chunk, num_chunks, world_size) + rotation) % world_size
            for chunk in range(num_chunks)
        ]
        return cls.from_owners(owners, world_size)

    @classmethod
    def from_owners(cls, owners: Sequence[int], world_size: int) -> Placement:
        """The partition in which ``owners[chunk]`` alone holds each chunk."""
        return cls(tuple((int(owner),) for owner in owners), world_size)

    @property
    def num_chunks(self) -> int:
        return len(self.holders)

    @cached_property
    def is_partition(self) -> bool:
        return all(len(ranks) == 1 for ranks in self.holders)

    @cached_property
    def owners(self) -> tuple[int, ...]:
        """The owner of each chunk; only for a partition."""
        if not self.is_partition:
            shared = next(c for c, ranks in enumerate(self.holders) if len(ranks) > 1)
            raise ValueError(
                f"chunk {shared} is held by ranks {self.holders[shared]}; "
                "expected a partition, with one owner for each chunk"
            )
        return tuple(ranks[0] for ranks in self.holders)

    @cached_property
    def _by_rank(self) -> tuple[tuple[int, ...], ...]:
        chunks: list[list[int]] = [[] for _ in range(self.world_size)]
        for chunk, ranks in enumerate(self.holders):
            for rank in ranks:
                chunks[rank].append(chunk)
        return tuple(tuple(own) for own in chunks)

    def chunks_on(self, rank: int) -> tuple[int, ...]:
        """The chunks that ``rank`` holds, ascending; empty where it holds none."""
        return self._by_rank[rank]

    def contains(self, other: Placement) -> bool:
        """Whether every (chunk, rank) of ``other`` is in this placement."""
        return (
            self.world_size == other.world_size
            and self.num_chunks == other.num_chunks
            and all(
                set(theirs) <= set(ours)
                for ours, theirs in zip(self.holders, other.holders, strict=True)
            )
        )


def _block_of(chunk: int, num_chunks: int, world_size: int) -> int:
    """The block of ``chunk`` when the first ``num_chunks % world_size`` blocks hold one more."""
    size, larger = divmod(num_chunks, world_size)
    boundary = larger * (size + 1)
    return chunk // (size + 1) if chunk < boundary else larger + (chunk - boundary) // size
