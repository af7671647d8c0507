"""A pool of blocks, each room for the keys and values of ``block_tokens`` tokens; ids only."""

from __future__ import annotations

from collections.abc import Iterable

from serving.memory.tiers import BlockHandle, Tier


class BlockPool:
    """Counts who holds each block; free and used blocks are ``total`` at all times.

    A block is free while nobody holds it. Sequences and caches each hold with one reference, so
    that a block shared by three sequences and a cache is given back by the fourth ``release``.
    Misuse (holding a free block, releasing it, allocating more than is free) is a bug of the
    caller's and an ``AssertionError``.
    """

    def __init__(self, total: int, block_tokens: int, tier: Tier = Tier.DEVICE) -> None:
        assert total > 0 and block_tokens > 0
        self.total = total
        self.block_tokens = block_tokens
        self.tier = tier
        self._holders = [0] * total
        self._generations = [0] * total
        self._free = list(range(total - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    def holders(self, block_id: int) -> int:
        return self._holders[block_id]

    def handle(self, block_id: int) -> BlockHandle:
        """This use of a block, or of one that nobody holds any more, its last one."""
        return BlockHandle(self.tier, block_id, self._generations[block_id])

    def holds(self, handle: BlockHandle) -> bool:
        """Whether that use of the block still goes on."""
        assert handle.tier is self.tier, f"a block of {handle.tier} in a pool of {self.tier}"
        block_id = handle.block_id
        return self._holders[block_id] > 0 and self._generations[block_id] == handle.generation

    def allocate(self, count: int) -> list[int]:
        """``count`` free blocks, each held once; ask for no more than are ``free``."""
        assert 0 <= count <= len(self._free), f"{count} blocks of {len(self._free)} free ones"
        block_ids = [self._free.pop() for _ in range(count)]
        for block_id in block_ids:
            self._holders[block_id] = 1
            self._generations[block_id] += 1
        return block_ids

    def hold(self, block_ids: Iterable[int]) -> None:
        """One more holder for each of these, which somebody holds already."""
        for block_id in block_ids:
            assert self._holders[block_id] > 0, f"block {block_id} is free"
            self._holders[block_id] += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """One holder fewer; a block without any is free again."""
        for block_id in block_ids:
            assert self._holders[block_id] > 0, f"block {block_id} is free already"
            self._holders[block_id] -= 1
            if not self._holders[block_id]:
                self._free.append(block_id)


def blocks_for(num_tokens: int, block_tokens: int) -> int:
    """How many blocks hold ``num_tokens``."""
    return -(-num_tokens // block_tokens)
