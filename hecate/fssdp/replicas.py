"""Copies of other ranks' experts on this one, for as long as a step needs them."""

from __future__ import annotations

import torch

from hecate.models.families import MoELayer


class ReplicaSlots:
    """Room for ``len(expert_ids)`` experts of one layer that other ranks own.

    ``weights_nC`` and ``grads_nC`` are the rows of larger buffers, which layers may share in turn:
    a slot holds a copy of the owner's weights while the layer is materialized, and afterwards this
    rank's part of the gradient until it has been reduced.
    """

    def __init__(
        self,
        layer: MoELayer,
        expert_ids: tuple[int, ...],
        weights_nC: torch.Tensor,
        grads_nC: torch.Tensor,
    ) -> None:
        self.layer = layer
        self.expert_ids = expert_ids
        self._weights_nC, self._grads_nC = weights_nC, grads_nC
        self._weights = layer.layout.views(weights_nC)
        self._grads = layer.layout.views(grads_nC)
        self._grad_is_stale = True

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The copies in the compute dtype by tensor name, each ``[n, *shape]``; views."""
        return self._weights

    @property
    def grads(self) -> dict[str, torch.Tensor]:
        """This rank's part of the gradients by tensor name, each ``[n, *shape]``; views."""
        return self._grads

    def weight_rows(self) -> dict[int, torch.Tensor]:
        return dict(zip(self.expert_ids, self._weights_nC, strict=True))

    def grad_rows(self) -> dict[int, torch.Tensor]:
        return dict(zip(self.expert_ids, self._grads_nC, strict=True))

    def begin_backward(self) -> bool:
        """Whether this backward pass overwrites the gradient (``True``) or adds to it."""
        overwrite, self._grad_is_stale = self._grad_is_stale, False
        return overwrite


class SlotBuffers:
    """Where replicas lie: one buffer for each layer, or one that all layers take in turn.

    Buffers grow to the most that was ever asked for and are kept, so that steps with the same
    placements allocate nothing. ``shared``: the weights of only one layer are there at a time.
    """

    def __init__(self, num_layers: int, *, shared: bool, device: torch.device) -> None:
        self._shared, self._device = shared, device
        self._buffers: list[torch.Tensor] = [torch.empty(0)] * (1 if shared else num_layers)

    def reserve(self, layer: int, numel: int, dtype: torch.dtype) -> None:
        """Make room for ``numel`` elements; what was handed out before is no longer valid."""
        place = 0 if self._shared else layer
        buffer = self._buffers[place]
        if buffer.numel() < numel or buffer.dtype != dtype:
            self._buffers[place] = torch.empty(numel, dtype=dtype, device=self._device)

    def rows(self, layer: int, count: int, numel: int) -> torch.Tensor:
        """``[count, numel]`` of what is reserved, whose content is whatever was there."""
        buffer = self._buffers[0 if self._shared else layer]
        return buffer[: count * numel].view(count, numel)

    @property
    def allocated_bytes(self) -> int:
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers)
