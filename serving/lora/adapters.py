"""An adapter in memory, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LowRank:
    """What is added to one projection: ``x @ a.T @ b``, for each expert, 1 for a linear layer.

    ``b`` has the adapter's scaling in it, and its rows are those of ``a``, so that both halves of a
    smaller rank are the beginnings of larger ones.
    """

    a_ErI: torch.Tensor
    b_ErO: torch.Tensor

    @property
    def rank(self) -> int:
        return self.a_ErI.shape[1]

    @property
    def num_bytes(self) -> int:
        return self.a_ErI.nbytes + self.b_ErO.nbytes


@dataclass(frozen=True)
class Adapter:
    """Of every projection that it changes, by the target's name, in the model's order."""

    digest: str
    changes: Mapping[str, LowRank]

    @property
    def rank(self) -> int:
        return max(change.rank for change in self.changes.values())

    @property
    def num_bytes(self) -> int:
        return sum(change.num_bytes for change in self.changes.values())
