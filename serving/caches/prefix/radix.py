"""A tree over full blocks, one node a block, evicted from its leaves, the longest unused first.

The tree of SGLang's RadixAttention (2312.07104, section 3) and MemServe's local index (2406.17565),
cut at block borders, so that a node never splits.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from serving.memory.blocks import BlockPool
from serving.memory.tiers import BlockCopy

_Tokens = tuple[int, ...]


@dataclass(eq=False)
class _Node:
    key: _Tokens
    block_id: int
    parent: _Node | None
    scope: bytes = b""
    last_use: int = 0
    children: dict[_Tokens, _Node] = field(default_factory=dict)


class RadixPrefix:
    """Least recently used leaves go first; what a sequence holds, and all before it, stays."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._roots: dict[bytes, _Node] = {}
        self._uses = 0
        self._heap: list[tuple[int, int, _Node]] = []  # leaves by last use; stale entries too
        self._entries = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def match(self, scope: bytes, tokens: Sequence[int]) -> list[int]:
        block_ids: list[int] = []
        self._uses += 1
        for node in self._path(scope, tokens):
            node.last_use = self._uses
            block_ids.append(node.block_id)
        self._pool.hold(block_ids)
        return block_ids

    def insert(self, scope: bytes, tokens: Sequence[int], block_ids: Sequence[int]) -> int:
        keys = self._keys(tokens)
        if not keys:
            return 0
        node = self._roots.setdefault(scope, _Node((), -1, None, scope))
        new = 0
        self._uses += 1
        for key, block_id in zip(keys, block_ids, strict=False):
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = _Node(key, block_id, node)
                self._pool.hold([block_id])
                new += 1
            child.last_use = self._uses
            node = child
        self._size += new
        if new:
            self._push(node)
        return new

    def kept(self, scope: bytes, tokens: Sequence[int]) -> int:
        path = self._path(scope, tokens)
        used = itertools.takewhile(lambda node: self._pool.holders(node.block_id) > 1, path)
        return sum(1 for _ in used)

    def evict(self, count: int) -> int:
        freed = 0
        held: list[_Node] = []
        while freed < count and self._heap:
            last_use, _, node = heapq.heappop(self._heap)
            if node.children or node.block_id < 0:
                continue  # a leaf when it was pushed, or gone
            if node.last_use != last_use:
                self._push(node)
            elif self._pool.holders(node.block_id) > 1:
                held.append(node)
            else:
                self._remove(node)
                freed += 1
        for node in held:
            self._push(node)
        return freed

    def touch(self, scope: bytes, tokens: Sequence[int]) -> None:
        self._uses += 1
        for node in self._path(scope, tokens):
            node.last_use = self._uses

    def moved(self) -> tuple[tuple[BlockCopy, ...], tuple[BlockCopy, ...]]:
        return (), ()

    def _path(self, scope: bytes, tokens: Sequence[int]) -> Iterator[_Node]:
        """The nodes of the longest beginning of ``tokens`` that is there."""
        node = self._roots.get(scope)
        for key in self._keys(tokens):
            node = node.children.get(key) if node else None
            if node is None:
                return
            yield node

    def _remove(self, node: _Node) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[node.key]
        self._pool.release([node.block_id])
        node.block_id = -1
        self._size -= 1
        if parent.children:
            return
        if parent.parent is None:
            del self._roots[parent.scope]
        else:
            self._push(parent)

    def _push(self, node: _Node) -> None:
        self._entries += 1
        heapq.heappush(self._heap, (node.last_use, self._entries, node))

    def _keys(self, tokens: Sequence[int]) -> list[_Tokens]:
        size = self._pool.block_tokens
        return [tuple(tokens[a : a + size]) for a in range(0, len(tokens) - size + 1, size)]
