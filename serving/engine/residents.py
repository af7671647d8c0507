"""Adapters in their slots, as the kernels of the forward pass read them: kernels/adapters.h."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch

from serving.engine.kernels import library
from serving.lora.layers import AdapterLayers
from serving.lora.packed import Packed
from serving.lora.slots import Place

# Projections of the kernels -> the linear layers whose columns they write, in order.
LINEARS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
EXPERTS = {"gate_up": "mlp.experts.gate_up_proj", "down": "mlp.experts.down_proj"}


class Residents:
    """The slots of ``layers``, of a model whose layers' names begin with ``prefix``."""

    def __init__(self, layers: AdapterLayers, prefix: str) -> None:
        self._layers = layers
        self._prefix = prefix
        self._changes = self._table()
        self._known = len(layers.packed)  # projections that the table has
        self._kept: tuple[np.ndarray, ...] = ()  # what the struct of the last step points to

    def of(self, runs: Sequence[tuple[int, Place | None]]) -> library.Adapters | None:
        """A step whose next rows go through these adapters, so many through each; None where none
        does. It is good until the next one."""
        numbers: dict[Place, int] = {}
        place_S = [-1 if at is None else numbers.setdefault(at, len(numbers)) for _, at in runs]
        packed = self._layers.packed
        if not numbers or not packed:
            return None
        if self._known != len(packed):
            self._changes = self._table()
            self._known = len(packed)
        rows = next(iter(packed.values())).rank_P.shape[0]
        if any(place.start < 0 or place.stop > rows for place in numbers):
            raise IndexError(f"an adapter of {list(numbers)} lies beyond {rows} packed rows")
        slot = np.array([place.start for place in numbers], dtype=np.int32)
        place_T = np.repeat(np.array(place_S, dtype=np.int32), [count for count, _ in runs])
        self._kept = (slot, place_T)
        return library.Adapters(
            ctypes.addressof(self._changes),
            slot.ctypes.data,
            place_T.ctypes.data,
            len(slot),
            rows,
            len(place_T),
        )

    def _table(self) -> ctypes.Array[library.Change]:
        """Every layer's changes, by projection."""
        changes = (library.Change * (4 * self._layers.targets.num_layers))()
        for layer in range(self._layers.targets.num_layers):
            for number, projection in enumerate(LINEARS):
                found = self._parts(layer, projection)
                change = changes[4 * layer + number]
                change.parts = len(found)
                for place, part in enumerate(found):
                    change.part[place] = part
        return changes

    def _parts(self, layer: int, projection: str) -> list[library.Part]:
        names = [f"{self._prefix}.{layer}.{name}" for name in LINEARS[projection]]
        experts = f"{self._prefix}.{layer}.{EXPERTS.get(projection, '')}"
        by_name = self._layers.targets.by_name
        found, column = [], 0
        for name in [experts] if experts in by_name else names:
            if (packed := self._layers.packed.get(name)) is not None:
                found.append(_part(packed, column))
            column += by_name[name].outputs
        return found


def _part(packed: Packed, column: int) -> library.Part:
    assert packed.target.outputs % 16 == 0  # or the kernels would not know the model
    for half in (packed.a_EPI, packed.b_EPO, packed.rank_P):
        assert half.is_contiguous() and half.device.type == "cpu"
    assert packed.rank_P.dtype == torch.int32
    return library.Part(
        packed.a_EPI.data_ptr(),
        packed.b_EPO.data_ptr(),
        packed.rank_P.data_ptr(),
        column,
        packed.target.outputs,
    )
