"""No cache: every prompt is computed whole."""

from __future__ import annotations

from collections.abc import Sequence

from serving.memory.blocks import BlockPool
from serving.memory.tiers import BlockCopy


class NoPrefix:
    """The baseline: nothing is kept."""

    def __init__(self, pool: BlockPool) -> None:
        pass

    def __len__(self) -> int:
        return 0

    def match(self, scope: bytes, tokens: Sequence[int]) -> list[int]:
        return []

    def insert(self, scope: bytes, tokens: Sequence[int], block_ids: Sequence[int]) -> int:
        return 0

    def kept(self, scope: bytes, tokens: Sequence[int]) -> int:
        return 0

    def evict(self, count: int) -> int:
        return 0

    def touch(self, scope: bytes, tokens: Sequence[int]) -> None:
        pass

    def moved(self) -> tuple[tuple[BlockCopy, ...], tuple[BlockCopy, ...]]:
        return (), ()
