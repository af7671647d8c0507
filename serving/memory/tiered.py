"""The tensors behind all tiers, and what copies blocks between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from serving.memory.kv import LayerShape, PagedKV, bytes_per_block, mapped
from serving.memory.tiers import BlockCopy, Tier, Transfer

_STAGED_BYTES = 64 << 20


class HostBlocks:
    """Blocks in the host's memory, one after the other, each of all layers in one piece, as what
    goes further (to a disk, to another instance) wants them.

    ``pinned``: a device reads and writes them by itself.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        *,
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        pinned: bool,
    ) -> None:
        width = bytes_per_block(layers, block_tokens, dtype) // dtype.itemsize
        if pinned:
            self.rows_PB = torch.zeros(num_blocks, width, dtype=dtype, pin_memory=True)
        else:
            self.rows_PB = mapped(num_blocks * width, dtype).view(num_blocks, width)

    def gather(self, block_ids: Sequence[int], device: torch.device) -> torch.Tensor:
        """``[n, B]`` on ``device``: the contents of each block."""
        rows_nB = self.rows_PB.new_empty(len(block_ids), self.rows_PB.shape[1], device=device)
        for rows, blocks in _runs(block_ids):
            rows_nB[rows].copy_(self.rows_PB[blocks], non_blocking=True)
        return rows_nB

    def scatter(self, block_ids: Sequence[int], rows_nB: torch.Tensor) -> None:
        """Write rows, of any device, into these blocks."""
        for rows, blocks in _runs(block_ids):
            self.rows_PB[blocks].copy_(rows_nB[rows], non_blocking=True)


class TieredKV:
    """Runs a step's transfers, in the order in which they stand, on the device's own queue: what is
    computed after them there has them done, ``finish`` waits for that."""

    def __init__(self, device: PagedKV, host: HostBlocks | None = None) -> None:
        self.paged = device
        self._host = host
        block_bytes = sum(t.nbytes for t in (*device.keys, *device.values)) // device.num_blocks
        self._at_once = max(1, _STAGED_BYTES // max(1, block_bytes))

    def run(self, transfers: Sequence[Transfer]) -> int:
        """How many blocks went from one tier to another."""
        moved = 0
        for transfer in transfers:
            if transfer.source is transfer.target:
                assert transfer.source is Tier.DEVICE
                self.paged.copy(transfer.copies)
                continue
            moved += len(transfer.copies)
            # In order of the host's blocks: those that lie side by side are copied in one piece.
            out = transfer.target is Tier.HOST
            copies = sorted(transfer.copies, key=lambda c: c.target if out else c.source)
            for start in range(0, len(copies), self._at_once):
                self._move(copies[start : start + self._at_once], out=out)
        return moved

    def finish(self) -> None:
        """Wait for the device."""
        if self.paged.device.type == "cuda":
            torch.cuda.synchronize(self.paged.device)

    def _move(self, copies: Sequence[BlockCopy], *, out: bool) -> None:
        assert self._host is not None, "a decision with a tier that is not there"
        sources = [copy.source for copy in copies]
        targets = [copy.target for copy in copies]
        if out:
            self._host.scatter(targets, self.paged.gather(sources))
        else:
            self.paged.scatter(targets, self._host.gather(sources, self.paged.device))


def _runs(block_ids: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Places in ``block_ids`` and the blocks there, wherever these follow one another."""
    start = 0
    for stop in range(1, len(block_ids) + 1):
        if stop == len(block_ids) or block_ids[stop] != block_ids[stop - 1] + 1:
            first = block_ids[start]
            yield slice(start, stop), slice(first, first + stop - start)
            start = stop
