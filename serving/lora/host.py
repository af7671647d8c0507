"""Adapters in the host's memory, between disk and device."""

from __future__ import annotations

import threading
from collections import OrderedDict

from serving.lora.adapters import Adapter


class HostCache:
    """Up to ``most_bytes``; what was used last the longest ago goes first. For any thread."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: OrderedDict[str, Adapter] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0

    def get(self, digest: str) -> Adapter | None:
        with self._lock:
            adapter = self._held.get(digest)
            if adapter is not None:
                self._held.move_to_end(digest)
            return adapter

    def put(self, adapter: Adapter) -> None:
        """Keep ``adapter``, if it fits at all."""
        with self._lock:
            if adapter.digest in self._held or adapter.num_bytes > self._most_bytes:
                return
            while self.num_bytes + adapter.num_bytes > self._most_bytes:
                self.num_bytes -= self._held.popitem(last=False)[1].num_bytes
            self._held[adapter.digest] = adapter
            self.num_bytes += adapter.num_bytes

    @property
    def digests(self) -> tuple[str, ...]:
        """Of what it has."""
        with self._lock:
            return tuple(self._held)

    def drop(self, digest: str) -> None:
        with self._lock:
            adapter = self._held.pop(digest, None)
            if adapter is not None:
                self.num_bytes -= adapter.num_bytes
