"""Bytes of tensors that are alive while a block of code runs, now and at most."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts every storage that an operation makes until it is freed; each storage once.

    ``known`` tensors do not count: they were there before. Works on any device, the meta device
    among them, where nothing is allocated and the count is what would have been.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now_bytes = self.peak_bytes = 0
        self._known = {_key(tensor): tensor for tensor in known}
        self._alive: dict[int, weakref.ref[Any]] = {}

    def start_anew(self) -> None:
        """Let the peak begin at what is alive now."""
        self.peak_bytes = self.now_bytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        key = _key(tensor)
        if key in self._known or key in self._alive:
            return
        storage = tensor.untyped_storage()
        size_bytes = storage.nbytes()

        def gone(_: object) -> None:
            if self._alive.pop(key, None) is not None:
                self.now_bytes -= size_bytes

        self._alive[key] = weakref.ref(storage, gone)
        self.now_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
