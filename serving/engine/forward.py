"""A step's forward pass: what a worker asks of whatever computes its model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers.modeling_utils import PreTrainedModel

from serving.engine.batch import Piece, paged_batch
from serving.engine.loading import run_model
from serving.memory.kv import PagedKV


class Forward(Protocol):
    """Computes pieces of sequences, and writes their keys and values."""

    def __call__(self, pieces: Sequence[Piece], sampled: Sequence[int]) -> torch.Tensor:
        """Logits ``[len(sampled), V]`` of the last token of each of the ``sampled`` pieces.

        ``pieces``: those of one token first. ``sampled``: numbers of pieces, ascending.
        """
        ...


class HuggingFaceForward:
    """The model's own code, with our attention."""

    def __init__(self, model: PreTrainedModel, kv: PagedKV) -> None:
        self._model = model
        self._kv = kv

    def __call__(self, pieces: Sequence[Piece], sampled: Sequence[int]) -> torch.Tensor:
        device = self._kv.keys[0].device
        ends = []
        stop = 0
        for piece in pieces:
            stop += len(piece.tokens)
            ends.append(stop - 1)
        batch = paged_batch(pieces, self._kv, device)
        rows = torch.tensor([ends[number] for number in sampled] or [0], device=device)
        return run_model(self._model, batch, rows)[: len(sampled)]
