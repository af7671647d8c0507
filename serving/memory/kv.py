"""The tensors behind a pool's blocks: keys and values of every layer, slot by slot."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from serving.memory.tiers import BlockCopy


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps of a token: ``heads`` keys and values, of sizes that may differ."""

    heads: int
    key_dim: int
    value_dim: int

    @property
    def numel(self) -> int:
        return self.heads * (self.key_dim + self.value_dim)


class PagedKV:
    """Keys ``[P * Z, M, H]`` and values of each layer; slot ``block_id * Z + offset`` is a token's.

    One pair of tensors a layer, in the pool's order of blocks, all of ``dtype`` on ``device``.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        *,
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.device = device
        slots = num_blocks * block_tokens

        def empty(heads: int, dim: int) -> torch.Tensor:
            # Zeros: what was never written is multiplied by a weight of 0, and 0 * NaN is NaN.
            if device.type == "cpu" and slots:
                return mapped(slots * heads * dim, dtype).view(slots, heads, dim)
            return torch.zeros(slots, heads, dim, dtype=dtype, device=device)

        self.keys = [empty(layer.heads, layer.key_dim) for layer in layers]
        self.values = [empty(layer.heads, layer.value_dim) for layer in layers]

    def write(
        self, layer: int, slots_T: torch.Tensor, key_TMH: torch.Tensor, value_TMH: torch.Tensor
    ) -> None:
        """Put the keys and values of ``T`` tokens into their slots (int64, same device)."""
        self.keys[layer].index_copy_(0, slots_T, key_TMH)
        self.values[layer].index_copy_(0, slots_T, value_TMH)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copy whole blocks in every layer; no block is both source and target."""
        sources = torch.tensor([copy.source for copy in copies], device=self.device)
        targets = torch.tensor([copy.target for copy in copies], device=self.device)
        for blocks_PB in self._blocks():
            blocks_PB.index_copy_(0, targets, blocks_PB.index_select(0, sources))

    def gather(self, block_ids: Sequence[int]) -> torch.Tensor:
        """``[n, B]``: the contents of each block, all layers' in one row."""
        sources = torch.tensor(block_ids, device=self.device)
        return torch.cat([each.index_select(0, sources) for each in self._blocks()], dim=1)

    def scatter(self, block_ids: Sequence[int], rows_nB: torch.Tensor) -> None:
        """Write rows as ``gather`` gives them into these blocks."""
        targets = torch.tensor(block_ids, device=self.device)
        blocks = self._blocks()
        widths = [each.shape[1] for each in blocks]
        for blocks_PB, part_nB in zip(blocks, rows_nB.split(widths, dim=1), strict=True):
            blocks_PB.index_copy_(0, targets, part_nB)

    def _blocks(self) -> list[torch.Tensor]:
        """Every tensor, one row a block."""
        return [
            tensor.view(self.num_blocks, self.block_tokens * tensor.shape[1] * tensor.shape[2])
            for tensor in (*self.keys, *self.values)
        ]


def mapped(numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take memory when they are first written, in large pages where there are: keys lie
    all over the pool, and with small pages the processor would look up each block's address.

    Private memory, since what is shared counts as a file and gets no large pages by itself.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(numel, dtype=dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, numel * dtype.itemsize, flags=flags)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype)


def bytes_per_block(layers: Sequence[LayerShape], block_tokens: int, dtype: torch.dtype) -> int:
    """What one block costs over all layers."""
    return sum(layer.numel for layer in layers) * block_tokens * dtype.itemsize
