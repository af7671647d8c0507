"""The adapters of a LoRA run: as a folder that PEFT reads, or added to the model's own weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from hecate.checkpoint.architecture import saved_architecture
from hecate.checkpoint.base import require_same_base
from hecate.checkpoint.names import dense_key, expert_key
from hecate.checkpoint.reader import CheckpointReader
from hecate.errors import CheckpointError, StorageError
from hecate.models.build import meta_model
from hecate.models.families import MoELayer, find_moe_layers
from hecate.models.hub import HubFolder, publish_folder
from hecate.models.hub.publish import MARKER
from hecate.models.lora import AdaptedLayer, LoraConfig, adapted_layers
from hecate.models.lora import peft_format as peft
from hecate.models.lora.linear import LORA_A, LORA_B

_DENSE = dense_key("")


def has_adapters(meta: Mapping[str, Any]) -> bool:
    """Whether a LoRA run saved the checkpoint of this meta; such a one holds nothing else."""
    return bool(meta.get("config", {}).get("lora", {}).get("rank", 0))


@dataclass(frozen=True)
class SavedAdapters:
    """A checkpoint's adapters, by their names in its model, which is on the meta device."""

    reader: CheckpointReader
    model: PreTrainedModel
    config: LoraConfig
    base: Path
    layers: tuple[MoELayer, ...]
    adapted: tuple[AdaptedLayer, ...]

    @classmethod
    def of(cls, reader: CheckpointReader) -> SavedAdapters:
        """Raises ``CheckpointError`` for a checkpoint of a run that trained the whole model."""
        settings = reader.meta.get("config", {})
        config = LoraConfig.model_validate(settings.get("lora", {}))
        if not config.active:
            raise CheckpointError(
                f"checkpoint {reader.path} has no adapters",
                got="the whole model",
                expected="a run with lora.rank above 0",
                fix="export it without asking for adapters",
            )
        model = meta_model(saved_architecture(reader.path, reader.meta))
        layers = find_moe_layers(model)
        adapted = adapted_layers(model, layers, config)
        base = Path(settings["model"]["path"]).expanduser()
        return cls(reader, model, config, base, layers, adapted)

    @cached_property
    def linears(self) -> tuple[str, ...]:
        """Paths of the linear layers that have an adapter."""
        names = (key.removeprefix(_DENSE) for key in self.reader.keys() if key.startswith(_DENSE))
        ends = f".{LORA_A}.weight"
        return tuple(name.removesuffix(ends) for name in names if name.endswith(ends))

    def linear(self, path: str, half: str) -> Tensor:
        return self.reader.tensor(dense_key(f"{path}.{half}.weight"))

    def expert(self, layer: AdaptedLayer, expert_id: int) -> dict[str, Tensor]:
        """One expert's adapters by their names in ``layer.layout``, views of its chunk."""
        chunk_C = self.reader.tensor(expert_key(layer.name, expert_id))
        if tuple(chunk_C.shape) != (layer.layout.numel,):
            raise CheckpointError(
                f"expert {expert_id} of {layer.name} has other adapters in {self.reader.path}",
                got=f"shape {tuple(chunk_C.shape)}",
                expected=f"({layer.layout.numel},)",
                fix="export with the version of hecate that trained the run",
            )
        return {name: view[0] for name, view in layer.layout.views(chunk_C[None]).items()}

    def peft_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that PEFT reads, by its names; one layer's adapters in memory at a time."""
        for path in self.linears:
            for half in (LORA_A, LORA_B):
                yield peft.linear_key(f"{path}.{half}.weight"), self.linear(path, half)
        for layer in self.adapted:
            if not layer.projections:
                continue
            experts = [self.expert(layer, expert_id) for expert_id in range(layer.num_experts)]
            for projection, half in peft.halves(layer):
                of_experts = [tensors[f"{projection}.{half}"] for tensors in experts]
                yield peft.expert_key(layer, projection, half), peft.stacked(half, of_experts)


def write_adapter(saved: SavedAdapters, out: Path, dtype: torch.dtype) -> tuple[int, int]:
    """Write ``out`` as PEFT reads it, and read it back; how many tensors and bytes it has.

    Appears whole or not at all (see ``publish_folder``).
    """
    tensors = {name: t.to(dtype).contiguous() for name, t in saved.peft_tensors()}
    settings = peft.adapter_config(saved.config, str(saved.base), saved.linears, saved.adapted)
    with publish_folder(out) as folder:
        weights = folder / peft.WEIGHTS_FILE
        save_file(tensors, weights, metadata={"format": "pt"})
        text = json.dumps(settings, indent=2, sort_keys=True)
        (folder / peft.CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        (folder / MARKER).write_text('{"written_by": "hecate export"}\n', encoding="utf-8")
        written = load_file(weights)
        for name, tensor in tensors.items():
            if name not in written or not torch.equal(written[name], tensor):
                raise StorageError(
                    f"the adapter folder does not hold what the checkpoint holds: {name} differs",
                    expected="equal bit for bit",
                    fix="check the disk, then export again",
                )
        size_bytes = weights.stat().st_size
    return len(tensors), size_bytes


class MergedWeights:
    """The model's own weights with the adapters added, by their names in the model.

    Sums are made in fp32 or wider. Raises ``CheckpointError`` where ``saved.base`` is not what the
    run was started from.
    """

    def __init__(self, saved: SavedAdapters) -> None:
        require_same_base(saved.reader.path, saved.reader.meta, saved.base)
        self.reader, self.model, self.layers = saved.reader, saved.model, saved.layers
        self._saved = saved
        self._adapted = {layer.name: layer for layer in saved.adapted}
        self._linears = {f"{path}.weight": path for path in saved.linears}
        self._folder = HubFolder(saved.base, saved.model, saved.layers)
        self._dense = dict(self._folder.dense())

    def dense(self, name: str) -> Tensor:
        """A parameter or buffer outside the experts."""
        weight = self._dense[name]
        path = self._linears.get(name)
        if path is None:
            return weight
        a, b = (self._saved.linear(path, half) for half in (LORA_A, LORA_B))
        return _merged(weight, a, b, self._saved.config.scaling, transposed=False)

    def expert(self, layer: MoELayer, expert_id: int) -> dict[str, Tensor]:
        """One expert's tensors by their names in the experts module."""
        tensors = dict(self._folder.expert(layer, expert_id))
        adapted = self._adapted[layer.name]
        if not adapted.projections:
            return tensors
        transposed = bool(self.model.get_submodule(layer.name).is_transposed)
        adapters = self._saved.expert(adapted, expert_id)
        for name in adapted.projections:
            a, b = (adapters[f"{name}.{half}"] for half in (LORA_A, LORA_B))
            tensors[name] = _merged(tensors[name], a, b, adapted.scaling, transposed=transposed)
        return tensors


def _merged(weight: Tensor, a: Tensor, b: Tensor, scaling: float, *, transposed: bool) -> Tensor:
    """``weight + scaling * b @ a``, whose own layout may be ``[in, out]``."""
    wide = torch.promote_types(torch.promote_types(weight.dtype, a.dtype), torch.float32)
    change = scaling * (b.to(wide) @ a.to(wide))
    return weight.to(wide) + (change.t() if transposed else change)
