"""What the launches over one group share: memory in which rows wait, a stream, numbers."""

from __future__ import annotations

import itertools

import torch


class LaunchResources:
    """Staging buffers that go round, the stream of launches of several rounds, launch numbers.

    Every transport that is used over a group shares the group's one instance, so that no two
    launches have the same number; all ranks launch in the same order and count alike.

    Fresh pages cost a tenth of sending them, so CPU buffers are kept. On CUDA torch's own allocator
    does this, and knows which stream uses what.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[torch.Tensor]] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._numbers = itertools.count()

    def next_number(self) -> int:
        """The number of a launch, the same on all ranks."""
        return next(self._numbers)

    def take(self, numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A 1-D tensor with any content."""
        if device.type == "cpu":
            # A progress thread may take the last buffer between a look and a pop.
            try:
                return self._free[numel * dtype.itemsize].pop().view(dtype)
            except (KeyError, IndexError):
                pass
        return torch.empty(numel, dtype=dtype, device=device)

    def give(self, buffer: torch.Tensor) -> None:
        """Return what ``take`` gave, once nothing reads or writes it any more."""
        if buffer.device.type == "cpu":
            numbers = buffer.view(torch.uint8)
            self._free.setdefault(numbers.numel(), []).append(numbers)

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        """One stream for all launches of several rounds, so that they reuse memory."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device, priority=-1)
        return self._streams[device]


def as_bytes(row: torch.Tensor) -> torch.Tensor:
    """``row`` ``[C]``, contiguous, as the uint8 of its memory."""
    # A row of one element may have stride 0 and be contiguous, but has no view as bytes then.
    return row.as_strided((row.numel(),), (1,)).view(torch.uint8)
