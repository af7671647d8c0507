"""The tree of ``radix``, of which what has to leave the device goes to the host's memory first.

Note: which copies run when
    What ``evict`` lowers is copied out before all else of a step, since its block may be written in
    it; what ``match`` raises is copied back last. A block of the host that is still to be read so
    is not given to another before ``moved`` was called, and what is still to be filled is not
    evicted. So each block is copied to at most once in a step, and from before it is written.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.memory.blocks import BlockPool
from serving.memory.tiers import BlockCopy

_Tokens = tuple[int, ...]
NOWHERE = -1


@dataclass(eq=False)
class _Node:
    """On the device or in the host's memory, never in both; ``on_device``: of its children."""

    key: _Tokens
    parent: _Node | None
    scope: bytes = b""
    block_id: int = NOWHERE
    host_id: int = NOWHERE
    last_use: int = 0
    on_device: int = 0
    children: dict[_Tokens, _Node] = field(default_factory=dict)


_Heap = list[tuple[int, int, _Node]]  # by last use; entries that are stale too


class TieredPrefix:
    """On the device the longest unused leaves are lowered first, and are gone from the host's
    memory in that order: what is on the device is always the beginning of what there is."""

    def __init__(self, pool: BlockPool, host: BlockPool, *, first: int = 0) -> None:
        """``first``: the number of ``host``'s first block among all that the host has."""
        assert pool.block_tokens == host.block_tokens
        self._pool = pool
        self._host = host
        self._first = first
        self._roots: dict[bytes, _Node] = {}
        self._uses = self._entries = self._size = 0
        self._leaves: _Heap = []  # without a child on the device
        self._ends: _Heap = []  # in the host's memory, without a child
        self._out: dict[int, BlockCopy] = {}
        self._back: list[BlockCopy] = []
        self._read: list[int] = []  # blocks of the host that _back copies from
        self._filling: set[_Node] = set()

    def __len__(self) -> int:
        return self._size

    def match(self, scope: bytes, tokens: Sequence[int]) -> list[int]:
        block_ids: list[int] = []
        self.touch(scope, tokens)  # all of it first: to raise some, none of it is pushed out
        for node in self._path(scope, tokens):
            if node.block_id == NOWHERE and not self._raise(node):
                break
            self._pool.hold([node.block_id])
            block_ids.append(node.block_id)
        return block_ids

    def insert(self, scope: bytes, tokens: Sequence[int], block_ids: Sequence[int]) -> int:
        keys = self._keys(tokens)
        if not keys:
            return 0
        node = self._roots.setdefault(scope, _Node((), None, scope))
        new = 0
        self._uses += 1
        for key, block_id in zip(keys, block_ids, strict=False):
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = _Node(key, node)
            if child.block_id == NOWHERE:
                if child.host_id != NOWHERE:  # computed again before it could come back
                    self._out.pop(child.host_id, None)
                    self._host.release([child.host_id])
                    child.host_id = NOWHERE
                self._pool.hold([block_id])
                self._settle(child, block_id)
                new += 1
            child.last_use = self._uses
            node = child
        if new and not node.on_device:
            self._push(self._leaves, node)
        return new

    def kept(self, scope: bytes, tokens: Sequence[int]) -> int:
        used = 0
        for node in self._path(scope, tokens):
            if node.block_id == NOWHERE or self._pool.holders(node.block_id) == 1:
                break
            used += 1
        return used

    def touch(self, scope: bytes, tokens: Sequence[int]) -> None:
        self._uses += 1
        for node in self._path(scope, tokens):
            node.last_use = self._uses

    def evict(self, count: int) -> int:
        freed = 0
        held: list[_Node] = []
        while freed < count and self._leaves:
            last_use, _, node = heapq.heappop(self._leaves)
            if node.on_device or node.block_id == NOWHERE:
                continue  # a leaf when it was pushed
            if node.last_use != last_use:
                self._push(self._leaves, node)
            elif node in self._filling or self._pool.holders(node.block_id) > 1:
                held.append(node)
            else:
                self._lower(node)
                freed += 1
        for node in held:
            self._push(self._leaves, node)
        return freed

    def moved(self) -> tuple[tuple[BlockCopy, ...], tuple[BlockCopy, ...]]:
        moved = tuple(self._out.values()), tuple(self._back)
        self._host.release(self._read)
        self._out, self._back, self._read = {}, [], []
        self._filling.clear()
        return moved

    def _path(self, scope: bytes, tokens: Sequence[int]) -> list[_Node]:
        """The nodes of the longest beginning of ``tokens`` that is there."""
        nodes: list[_Node] = []
        node = self._roots.get(scope)
        for key in self._keys(tokens):
            node = node.children.get(key) if node else None
            if node is None:
                break
            nodes.append(node)
        return nodes

    def _settle(self, node: _Node, block_id: int) -> None:
        assert node.parent is not None
        node.block_id = block_id
        node.parent.on_device += 1
        self._size += 1

    def _raise(self, node: _Node) -> bool:
        """Whether ``node``, which is in the host's memory, found a block on the device."""
        if not self._pool.free:
            self.evict(1)
        if (
            not self._pool.free or node.host_id == NOWHERE
        ):  # what was lowered may have pushed it out
            return False
        self._settle(node, self._pool.allocate(1)[0])
        self._back.append(BlockCopy(self._first + node.host_id, node.block_id))
        self._read.append(node.host_id)
        node.host_id = NOWHERE
        self._filling.add(node)
        self._push(self._leaves, node)
        return True

    def _lower(self, node: _Node) -> None:
        """From the device to the host's memory, or out of the tree where that has no room."""
        parent = node.parent
        assert parent is not None
        node.host_id = self._place()
        if node.host_id != NOWHERE:
            self._out[node.host_id] = BlockCopy(node.block_id, self._first + node.host_id)
        self._pool.release([node.block_id])
        node.block_id = NOWHERE
        self._size -= 1
        parent.on_device -= 1
        if parent.block_id != NOWHERE and not parent.on_device:
            self._push(self._leaves, parent)
        if node.host_id == NOWHERE:
            self._remove(node)
        elif not node.children:
            self._push(self._ends, node)

    def _place(self) -> int:
        """A block of the host's memory, whoever is there the longest unused gives way for it."""
        while not self._host.free and self._ends:
            last_use, _, node = heapq.heappop(self._ends)
            if node.host_id == NOWHERE or node.children:
                continue
            if node.last_use != last_use:
                self._push(self._ends, node)
                continue
            self._out.pop(node.host_id, None)
            self._host.release([node.host_id])
            node.host_id = NOWHERE
            self._remove(node)
        return self._host.allocate(1)[0] if self._host.free else NOWHERE

    def _remove(self, node: _Node) -> None:
        parent = node.parent
        assert parent is not None and not node.children
        del parent.children[node.key]
        if parent.children:
            return
        if parent.parent is None:
            del self._roots[parent.scope]
        elif parent.host_id != NOWHERE:
            self._push(self._ends, parent)

    def _push(self, heap: _Heap, node: _Node) -> None:
        self._entries += 1
        heapq.heappush(heap, (node.last_use, self._entries, node))

    def _keys(self, tokens: Sequence[int]) -> list[_Tokens]:
        size = self._pool.block_tokens
        return [tuple(tokens[a : a + size]) for a in range(0, len(tokens) - size + 1, size)]
