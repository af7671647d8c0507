"""Weights as the kernels read them: in panels, one after the other in one piece of memory."""

from __future__ import annotations

import ctypes

import torch

from serving.engine.structure import GATE_COLUMNS, Decoder, Linear


class Arena:
    """One piece of memory, in large pages where there are, for all packed weights in order."""

    def __init__(self, lib: ctypes.CDLL, decoder: Decoder, bfloat: int) -> None:
        self._library = lib
        self._bfloat = bfloat
        linears = [decoder.head]
        for layer in decoder.layers:
            linears += [layer.qkv, layer.out, layer.gate_up, layer.down]
            linears += [layer.router] if layer.router else []
        total = sum(self._bytes(linear.weight) for linear in linears)
        self._memory = torch.empty(total, dtype=torch.uint8)
        self._used = 0
        lib.hecate_huge_pages(self._memory.data_ptr(), total)

    def pack(self, weight: torch.Tensor) -> int:
        """The address of ``weight``, ``[N, K]`` or ``[E, N, K]``, in panels."""
        start = self._memory.data_ptr() + self._used
        N, K = weight.shape[-2:]
        for matrix in weight.detach().reshape(-1, N, K):
            matrix = matrix.contiguous()
            address = self._memory.data_ptr() + self._used
            self._library.hecate_pack(matrix.data_ptr(), address, N, K, self._bfloat)
            self._used += self._library.hecate_packed_bytes(N, K, self._bfloat)
        return start

    def _bytes(self, weight: torch.Tensor) -> int:
        N, K = weight.shape[-2:]
        each: int = self._library.hecate_packed_bytes(N, K, self._bfloat)
        return each * (weight.numel() // (N * K))


def interleaved(linear: Linear) -> Linear:
    """Gates and ups of the same columns side by side, so that one panel has both."""
    *experts, N, K = linear.weight.shape
    halves = linear.weight.detach().reshape(*experts, 2, N // 2 // GATE_COLUMNS, GATE_COLUMNS, K)
    return Linear(halves.transpose(-4, -3).reshape(*experts, N, K))
