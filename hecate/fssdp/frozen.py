"""The frozen part of a layer's experts on this rank: its own, and copies of others' that it keeps.

See Note [Where a frozen expert comes from] in keeping.py, which decides what is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from hecate.models.lora import AdaptedLayer


class FrozenExperts:
    """One layer's frozen chunks: ``[e, C]`` of the experts owned here, and kept copies by expert.

    All are of the dtype that experts compute in: no master weights are needed of what never
    changes.
    """

    def __init__(
        self,
        layer: AdaptedLayer,
        expert_ids: tuple[int, ...],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.layer = layer
        self._device, self._dtype = device, dtype
        self._copies: dict[int, torch.Tensor] = {}
        shape = (len(expert_ids), layer.frozen.numel)
        self.adopt(expert_ids, torch.zeros(shape, device=device, dtype=dtype))

    def adopt(self, expert_ids: tuple[int, ...], table_eC: torch.Tensor) -> None:
        """Own these experts from now on, ``[e, C]`` in the order of ``expert_ids``."""
        self._expert_ids, self.table_eC = expert_ids, table_eC

    def write(self, expert_id: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set one owned expert from its tensors by name."""
        for name, view in self.layer.frozen.views(self.row(expert_id)[None]).items():
            view[0].copy_(tensors[name])

    def keep_only(self, expert_ids: Iterable[int]) -> None:
        """Drop copies of other experts, and make room, not filled yet, for those that are new."""
        wanted = set(expert_ids)
        self._copies = {e: row_C for e, row_C in self._copies.items() if e in wanted}
        for expert_id in sorted(wanted - set(self._copies)):
            numel = self.layer.frozen.numel
            self._copies[expert_id] = torch.empty(numel, device=self._device, dtype=self._dtype)

    def row(self, expert_id: int) -> torch.Tensor:
        """One expert that is here, ``[C]``; a view."""
        if expert_id in self._copies:
            return self._copies[expert_id]
        return self.table_eC[self._expert_ids.index(expert_id)]

    def rows(self) -> dict[int, torch.Tensor]:
        """Everything that is here, by expert."""
        return dict(zip(self._expert_ids, self.table_eC, strict=True)) | self._copies

    def tensors(self, expert_id: int) -> dict[str, torch.Tensor]:
        """One expert that is here, its tensors by name; views."""
        views = self.layer.frozen.views(self.row(expert_id)[None])
        return {name: view[0] for name, view in views.items()}

    @property
    def chunk_bytes(self) -> int:
        """Of one expert."""
        return self.layer.frozen.numel * self._dtype.itemsize

    @property
    def copies_bytes(self) -> int:
        """Memory that kept copies take on this rank."""
        return sum(row_C.numel() * row_C.element_size() for row_C in self._copies.values())
