"""What a prefix cache is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from serving.memory.tiers import BlockCopy


class PrefixCache(Protocol):
    """Blocks by the tokens that they hold, from a prompt's first on; full blocks only.

    ``scope`` says for whom they are good: see ``scope_of``. Nothing crosses scopes. The cache holds
    a reference of its own on every block in it.
    """

    def __len__(self) -> int:
        """Blocks in the cache."""
        ...

    def match(self, scope: bytes, tokens: Sequence[int]) -> list[int]:
        """The blocks of the longest beginning of ``tokens`` that is there, held for the caller."""
        ...

    def insert(self, scope: bytes, tokens: Sequence[int], block_ids: Sequence[int]) -> int:
        """Publish the full blocks of ``tokens``, which are written; how many are new.

        Where the same tokens are there already, the older block stays and the caller's is its own.
        """
        ...

    def kept(self, scope: bytes, tokens: Sequence[int]) -> int:
        """How many blocks of the beginning of ``tokens`` are there and in use by somebody else too,
        so that ``evict`` leaves them."""
        ...

    def evict(self, count: int) -> int:
        """Free up to ``count`` blocks that nobody else holds; how many were freed."""
        ...

    def touch(self, scope: bytes, tokens: Sequence[int]) -> None:
        """What is there of the beginning of ``tokens`` counts as used now."""
        ...

    def moved(self) -> tuple[tuple[BlockCopy, ...], tuple[BlockCopy, ...]]:
        """What has to be copied to the host's memory, before all else, and back from it, last, for
        what was evicted and matched since the last call; before anything more is computed."""
        ...


def scope_of(model_digest: str, adapter_digest: str, tenant: str) -> bytes:
    """For whom a cached block is good: keys and values depend on all weights that made them, and no
    tenant may learn from a request's speed what another one asked."""
    scope = hashlib.sha256()
    for part in (model_digest, adapter_digest, tenant):
        data = part.encode()
        scope.update(len(data).to_bytes(8, "big") + data)  # lengths: no two triples look the same
    return scope.digest()
