"""Where the keys and values of one sequence lie: its blocks in order of position."""

from __future__ import annotations

from serving.memory.blocks import BlockPool, blocks_for
from serving.memory.tiers import BlockCopy


class BlockTable:
    """The blocks of one sequence; a block that others hold too is never written (copy on write)."""

    def __init__(self, pool: BlockPool, block_ids: list[int] | None = None) -> None:
        """``block_ids``: already held for this table, which releases them."""
        self._pool = pool
        self.block_ids: list[int] = block_ids or []

    def missing(self, start: int, stop: int) -> int:
        """How many free blocks it takes to write positions ``[start, stop)``, copies included."""
        more = blocks_for(stop, self._pool.block_tokens) - len(self.block_ids)
        return max(0, more) + len(self._shared(start, stop))

    def prepare(self, start: int, stop: int) -> tuple[BlockCopy, ...]:
        """Make positions ``[start, stop)`` writable; needs ``missing`` free blocks."""
        copies = []
        for place in self._shared(start, stop):
            source = self.block_ids[place]
            target = self._pool.allocate(1)[0]
            self._pool.release([source])
            self.block_ids[place] = target
            copies.append(BlockCopy(source, target))
        more = blocks_for(stop, self._pool.block_tokens) - len(self.block_ids)
        self.block_ids += self._pool.allocate(max(0, more))
        return tuple(copies)

    def fork(self) -> BlockTable:
        """A second table over the same blocks, for another answer to the same prompt."""
        self._pool.hold(self.block_ids)
        return BlockTable(self._pool, list(self.block_ids))

    def release(self) -> None:
        """Give every block back; the table is empty then, and may be filled again."""
        self._pool.release(self.block_ids)
        self.block_ids = []

    def _shared(self, start: int, stop: int) -> list[int]:
        """Places of blocks that ``[start, stop)`` writes to and that others hold."""
        first = start // self._pool.block_tokens
        last = min(blocks_for(stop, self._pool.block_tokens), len(self.block_ids))
        return [
            place for place in range(first, last) if self._pool.holders(self.block_ids[place]) > 1
        ]
