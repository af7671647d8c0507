"""Blocks of sequences that gave up their place on the device, in a second pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.memory.blocks import BlockPool, blocks_for
from serving.memory.tables import BlockTable
from serving.memory.tiers import BlockCopy, BlockHandle


@dataclass(frozen=True)
class SwappedTable:
    """Where the keys and values of a sequence's first ``tokens`` lie, in order of position."""

    blocks: tuple[BlockHandle, ...]
    tokens: int


class SwapSpace:
    """Moves sequences between the pool that they run in and ``below``; ids only.

    What it returns is to be copied before the step computes, what goes down before all else: the
    blocks that it came from may be written by then. A full block is never written again, so that
    sequences which shared it share its copy, going down and coming back.
    """

    def __init__(self, pool: BlockPool, below: BlockPool) -> None:
        assert pool.block_tokens == below.block_tokens
        assert pool.tier is not below.tier
        self.pool = pool
        self.below = below
        self._copies: dict[BlockHandle, int] = {}  # full blocks of pool -> the same below
        self._origins: dict[int, BlockHandle] = {}  # the same, from below

    def copied(self, block_ids: Sequence[int]) -> int:
        """How many of these would have to be copied, since they have no copy below."""
        return sum(self.pool.handle(block_id) not in self._copies for block_id in block_ids)

    def swap_out(
        self, block_ids: Sequence[int], tokens: int
    ) -> tuple[SwappedTable, tuple[BlockCopy, ...]]:
        """Keep the first ``tokens`` of a sequence below, in ``copied`` free blocks there.

        ``block_ids``: its blocks, which it may have given back already, just before.
        """
        whole = tokens // self.pool.block_tokens
        swapped: list[BlockHandle] = []
        copies: list[BlockCopy] = []
        for place, block_id in enumerate(block_ids[: blocks_for(tokens, self.pool.block_tokens)]):
            origin = self.pool.handle(block_id)
            copy_id = self._copies.get(origin)
            if copy_id is not None:
                self.below.hold([copy_id])
            else:
                copy_id = self.below.allocate(1)[0]
                copies.append(BlockCopy(block_id, copy_id))
                if place < whole:
                    self._pair(origin, copy_id)
            swapped.append(self.below.handle(copy_id))
        return SwappedTable(tuple(swapped), tokens), tuple(copies)

    def present(self, swapped: SwappedTable, start: int) -> list[int]:
        """Blocks of the pool that hold what is swapped, from place ``start`` on, as far as they are
        there without a gap; held for the caller."""
        block_ids: list[int] = []
        for handle in swapped.blocks[start:]:
            origin = self._origins.get(handle.block_id)
            if origin is None or not self.pool.holds(origin):
                break
            block_ids.append(origin.block_id)
        self.pool.hold(block_ids)
        return block_ids

    def swap_in(self, swapped: SwappedTable, table: BlockTable) -> tuple[BlockCopy, ...]:
        """Add to ``table``, which has the first places already, the blocks after them.

        Needs a free block for each; what was below is given back.
        """
        start = len(table.block_ids)
        assert all(self.below.holds(handle) for handle in swapped.blocks)
        block_ids = self.pool.allocate(max(0, len(swapped.blocks) - start))
        copies = []
        for handle, block_id in zip(swapped.blocks[start:], block_ids, strict=True):
            copies.append(BlockCopy(handle.block_id, block_id))
            if handle.block_id in self._origins:  # for the others that share it
                self._pair(self.pool.handle(block_id), handle.block_id)
        table.block_ids += block_ids
        self.drop(swapped)
        return tuple(copies)

    def drop(self, swapped: SwappedTable) -> None:
        """Give back what is below."""
        for handle in swapped.blocks:
            assert self.below.holds(handle)
            self.below.release([handle.block_id])
            if not self.below.holds(handle) and handle.block_id in self._origins:
                del self._copies[self._origins.pop(handle.block_id)]

    def _pair(self, origin: BlockHandle, copy_id: int) -> None:
        before = self._origins.pop(copy_id, None)
        if before is not None:
            del self._copies[before]
        self._copies[origin], self._origins[copy_id] = copy_id, origin
