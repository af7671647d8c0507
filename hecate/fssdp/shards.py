"""What one rank keeps of one MoE layer: whole experts, each a contiguous chunk.

The owner alone holds an expert's weights, gradient and optimizer state. Gradients are written
straight into one persistent buffer by the grouped GEMM, so that no step allocates or zeroes it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from hecate.errors import UsageError
from hecate.fssdp.frozen import FrozenExperts
from hecate.models.families import MoELayer
from hecate.models.lora import AdaptedLayer


class ExpertShard:
    """The chunks that this rank owns of one layer: ``[e, C]``, in the order of ``expert_ids``.

    ``parameter`` holds the master weights, whose dtype the optimizer works in; ``compute`` the
    weights in the dtype of the forward pass, the same storage where the dtypes agree. ``frozen``:
    what of these experts does not train, where chunks are their adapters.
    """

    def __init__(
        self,
        layer: MoELayer,
        expert_ids: tuple[int, ...],
        *,
        device: torch.device,
        dtype: torch.dtype,
        compute_dtype: torch.dtype,
    ) -> None:
        self.layer = layer
        self.expert_ids = expert_ids
        self.compute_dtype = compute_dtype
        shape = (len(expert_ids), layer.layout.numel)
        self.parameter = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        self.frozen: FrozenExperts | None = None
        if isinstance(layer, AdaptedLayer):
            self.frozen = FrozenExperts(layer, expert_ids, device=device, dtype=compute_dtype)
        self._lay_out()

    def _lay_out(self) -> None:
        masters_eC, layout = self.parameter.data, self.layer.layout
        self._masters_eC = masters_eC
        self._grad_eC = torch.zeros_like(masters_eC)
        self._grads = layout.views(self._grad_eC)
        self._grad_is_stale = True
        self._compute_eC = masters_eC
        if self.compute_dtype != masters_eC.dtype:
            self._compute_eC = masters_eC.to(self.compute_dtype)
        self._weights = layout.views(self._compute_eC)

    def adopt(self, expert_ids: tuple[int, ...], masters_eC: torch.Tensor) -> None:
        """Own other experts from now on, ``[e, C]`` in the order of ``expert_ids``.

        ``parameter`` stays the same object, so that optimizers keep it.
        """
        self.expert_ids = expert_ids
        self.parameter.data = masters_eC
        self.parameter.grad = None
        self._lay_out()

    @property
    def gather_bytes(self) -> int:
        """What one expert's copy brings with it in each step."""
        return self.layer.layout.numel * self.compute_dtype.itemsize

    @property
    def reduce_bytes(self) -> int:
        """What one copy's gradient takes home."""
        return self.layer.layout.numel * self.parameter.dtype.itemsize

    @property
    def frozen_bytes(self) -> int:
        """What a rank that never had a copy gets beside, once."""
        return 0 if self.frozen is None else self.frozen.chunk_bytes

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The weights in the compute dtype by tensor name, each ``[e, *shape]``; views."""
        return self._weights

    def write(self, expert_id: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set one owned expert from its tensors by name; ``refresh`` makes them count."""
        row = self.parameter.data[self.expert_ids.index(expert_id)]
        for name, view in self.layer.layout.views(row[None]).items():
            view[0].copy_(tensors[name])

    def chunk(self, expert_id: int) -> torch.Tensor:
        """The master weights of one owned expert, ``[C]``; a view."""
        return self.parameter.data[self.expert_ids.index(expert_id)]

    def compute_row(self, expert_id: int) -> torch.Tensor:
        """One owned expert as the forward pass uses it, ``[C]`` of the compute dtype; a view."""
        return self._compute_eC[self.expert_ids.index(expert_id)]

    def grad_row(self, expert_id: int) -> torch.Tensor:
        """The gradient of one owned expert, ``[C]``; a view of what ``parameter.grad`` is."""
        return self._grad_eC[self.expert_ids.index(expert_id)]

    def refresh(self) -> None:
        """Bring the compute weights up to date after the optimizer changed the masters."""
        if self._compute_eC.data_ptr() != self.parameter.data.data_ptr():
            self._compute_eC.copy_(self.parameter.data)

    def begin_step(self) -> None:
        """Forget the gradient: the next backward pass overwrites it."""
        if self.parameter.data_ptr() != self._masters_eC.data_ptr():
            raise UsageError(
                f"the experts of {self.layer.name} were moved or converted after shard_experts",
                got=f"weights of {self.parameter.dtype} on {self.parameter.device}, elsewhere "
                "than the runtime keeps them",
                fix="call model.to(...) and the like before shard_experts, whose dtype and "
                "compute_dtype say what experts are kept and computed in",
            )
        self._grad_is_stale = True
        self.parameter.grad = None

    def begin_backward(self) -> bool:
        """Whether this backward pass overwrites the gradient (``True``) or adds to it."""
        overwrite, self._grad_is_stale = self._grad_is_stale, False
        self.parameter.grad = self._grad_eC
        return overwrite

    @property
    def grads(self) -> dict[str, torch.Tensor]:
        """The gradient buffer by tensor name, each ``[e, *shape]``; views."""
        return self._grads
