"""Memory in which rows wait to be added up or to be sent, and how they are added up."""

from __future__ import annotations

import torch

LOW_PRECISION = (torch.bfloat16, torch.float16)


class Staging:
    """Buffers that go round between launches: fresh pages cost a tenth of sending them.

    CPU memory only: on CUDA torch's own allocator does this, and knows which stream uses what.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[torch.Tensor]] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

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
        """The stream of launches of several rounds, the same for all so that memory is reused."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device, priority=-1)
        return self._streams[device]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What rows of ``dtype`` are added up in."""
    return torch.float32 if dtype in LOW_PRECISION else dtype


def add_in_order(
    row: torch.Tensor, rank: int, arrived: list[tuple[int, torch.Tensor]], staging: Staging
) -> torch.Tensor:
    """``row`` of ``rank`` plus what arrived from other ranks, in ascending order of ranks.

    Returns the sum in ``sum_dtype``, where it is ``row``'s own in ``row`` itself, otherwise in a
    buffer of ``staging``. Buffers of ``arrived`` are overwritten and given back.
    """
    terms = sorted([*arrived, (rank, row)], key=lambda term: term[0])
    total = terms[0][1]
    if sum_dtype(row.dtype) != row.dtype:
        total = staging.take(row.numel(), torch.float32, row.device)
        total.copy_(terms[0][1])
        for _, term in terms[1:]:
            total.add_(term)
    else:
        for _, term in terms[1:]:
            # a + b = b + a to the bit: from its own place on, the sum grows in the row.
            if term is row:
                torch.add(total, row, out=row)
                total = row
            else:
                total.add_(term)
    for _, term in arrived:
        staging.give(term)
    return total
