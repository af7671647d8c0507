"""Weights as the kernels read them: in panels, one after the other in one piece of memory."""

from __future__ import annotations

import ctypes

import torch

from serving.engine.panels import PanelMemory, Sharing
from serving.engine.structure import GATE_COLUMNS, Decoder, Linear


class Arena:
    """Hands out the memory of all packed weights in order, and fills it unless it is filled."""

    def __init__(self, lib: ctypes.CDLL, memory: PanelMemory, bfloat: int) -> None:
        self._library = lib
        self._memory = memory
        self._bfloat = bfloat
        self._used = 0

    def pack(self, linear: Linear, *, interleave: bool = False) -> int:
        """The address of the weight, ``[N, K]`` or ``[E, N, K]``, in panels.

        ``interleave``: gates and ups of the same columns side by side, so that one panel has both.
        """
        start = self._memory.address + self._used
        each = packed_bytes(self._library, linear, self._bfloat) // linear.matrices
        if self._memory.filled:
            self._used += each * linear.matrices
            return start
        N, K = linear.shape[-2:]
        weight = linear.weight()
        for matrix in weight.detach().reshape(-1, N, K):
            matrix = (interleaved(matrix) if interleave else matrix).contiguous()
            address = self._memory.address + self._used
            self._library.hecate_pack(matrix.data_ptr(), address, N, K, self._bfloat)
            self._used += each
        return start


def panel_memory(
    lib: ctypes.CDLL, decoder: Decoder, bfloat: int, sharing: Sharing | None
) -> PanelMemory:
    """Memory for all weights of ``decoder``."""
    linears = [decoder.head]
    for layer in decoder.layers:
        linears += [layer.qkv, layer.out, layer.gate_up, layer.down]
        linears += [layer.router] if layer.router else []
    total = sum(packed_bytes(lib, linear, bfloat) for linear in linears)
    return PanelMemory(lib, total, sharing, decoder.embedding.dtype)


def packed_bytes(lib: ctypes.CDLL, linear: Linear, bfloat: int) -> int:
    """How much of the memory a weight takes."""
    N, K = linear.shape[-2:]
    each: int = lib.hecate_packed_bytes(N, K, bfloat)
    return each * linear.matrices


def interleaved(weight_NK: torch.Tensor) -> torch.Tensor:
    """Gates and ups of the same columns side by side."""
    N, K = weight_NK.shape
    halves = weight_NK.reshape(2, N // 2 // GATE_COLUMNS, GATE_COLUMNS, K)
    return halves.transpose(0, 1).reshape(N, K)
