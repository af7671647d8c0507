"""Turn a run's checkpoint into a Hugging Face folder, and prove that the folder holds the same.

Streams: the checkpoint is read, converted and written a tensor or an expert at a time, in one
process, whatever the number of ranks that saved it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from hecate.checkpoint.adapter import MergedWeights, SavedAdapters, has_adapters, write_adapter
from hecate.checkpoint.architecture import saved_architecture
from hecate.checkpoint.averaged import average_key, average_weight
from hecate.checkpoint.folder import newest_checkpoint, saved_steps
from hecate.checkpoint.names import dense_key, expert_key
from hecate.checkpoint.reader import CheckpointReader
from hecate.errors import CheckpointError, StorageError
from hecate.models.build import meta_model
from hecate.models.families import MoELayer, find_moe_layers
from hecate.models.hub import (
    SHARD_BYTES,
    FolderDtypes,
    HubFolder,
    copy_tokenizer,
    dense_names,
    publish_folder,
    write_configuration,
    write_weights,
)

ExportDtype = Literal["as_trained", "float32", "bfloat16", "float16", "float64"]

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class ExportReport:
    """What was written: ``num_tensors`` counts in-model tensors, an expert's one by one."""

    folder: Path
    step: int
    dtype: str
    num_tensors: int
    size_bytes: int


def export_run(
    run_folder: Path,
    out: Path,
    *,
    step: int = 0,
    dtype: ExportDtype = "as_trained",
    shard_bytes: int = SHARD_BYTES,
    merge: bool = False,
    averaged: bool = False,
) -> ExportReport:
    """Write the checkpoint of ``step`` (0: the newest) as a folder that transformers loads.

    Of a LoRA run it is a folder of adapters that PEFT loads; with ``merge`` the whole model, the
    adapters added to its weights. ``averaged`` writes the running average of weights instead.
    ``as_trained`` writes the dtype that the run computed in. Before
    ``out`` appears the folder is read back and every tensor compared with the checkpoint's, bit
    for bit after the cast. Nothing is left of an export that fails.
    """
    reader = CheckpointReader(_checkpoint(run_folder, step))
    dtype_name = _trained_dtype(reader) if dtype == "as_trained" else dtype
    torch_dtype = _DTYPES[dtype_name]
    if has_adapters(reader.meta) and not merge:
        num_tensors, size_bytes = write_adapter(SavedAdapters.of(reader), out, torch_dtype)
        return ExportReport(out, reader.step, dtype_name, num_tensors, size_bytes)
    weights: Weights
    if merge:
        weights = MergedWeights(SavedAdapters.of(reader))
    else:
        weights = CheckpointWeights.of_run(run_folder, step, reader=reader, averaged=averaged)
    model, layers = weights.model, weights.layers
    tokenizer_folder = run_folder / "tokenizer"
    if not tokenizer_folder.is_dir():
        raise CheckpointError(
            f"{run_folder} has no tokenizer",
            expected=f"the folder {tokenizer_folder}, which training leaves there",
            fix="restore it from a copy of the run",
        )
    with publish_folder(out) as folder:
        write_weights(
            folder,
            model,
            layers,
            dense=((name, weights.dense(name)) for name in dense_names(model, layers)),
            expert=weights.expert,
            dtype=torch_dtype,
            shard_bytes=shard_bytes,
        )
        write_configuration(folder, model, torch_dtype)
        copy_tokenizer(tokenizer_folder, folder)
        num_tensors = require_equal(folder, weights, torch_dtype)
        size_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return ExportReport(out, weights.reader.step, dtype_name, num_tensors, size_bytes)


class Weights(Protocol):
    """A model's tensors by their names in it; ``model`` is on the meta device."""

    @property
    def reader(self) -> CheckpointReader: ...

    @property
    def model(self) -> PreTrainedModel: ...

    @property
    def layers(self) -> tuple[MoELayer, ...]: ...

    def dense(self, name: str) -> Tensor: ...

    def expert(self, layer: MoELayer, expert_id: int) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class CheckpointWeights:
    """A checkpoint's tensors by their names in its model, which is on the meta device.

    ``average``: what the weights in its running averages add up to, which are read instead; 0 reads
    the weights themselves.
    """

    reader: CheckpointReader
    model: PreTrainedModel
    layers: tuple[MoELayer, ...]
    average: float = 0.0

    @classmethod
    def of_run(
        cls,
        run_folder: Path,
        step: int = 0,
        *,
        reader: CheckpointReader | None = None,
        averaged: bool = False,
    ) -> CheckpointWeights:
        """Those of the checkpoint of ``step``, or of the newest; of ``reader`` where it is open."""
        reader = reader or CheckpointReader(_checkpoint(run_folder, step))
        model = meta_model(saved_architecture(reader.path, reader.meta))
        average = average_weight(reader.path, reader.meta) if averaged else 0.0
        return cls(reader, model, find_moe_layers(model), average)

    def dense(self, name: str) -> Tensor:
        """A parameter or buffer outside the experts; a buffer has no average."""
        return self._tensor(dense_key(name))

    @cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(self.reader.keys())

    def _tensor(self, key: str) -> Tensor:
        if not self.average or average_key(key) not in self._keys:
            return self.reader.tensor(key)
        return self.reader.tensor(average_key(key)).div_(self.average)

    def expert(self, layer: MoELayer, expert_id: int) -> dict[str, Tensor]:
        """One expert's tensors by their names in the experts module, views of its chunk."""
        chunk_C = self._tensor(expert_key(layer.name, expert_id))
        if tuple(chunk_C.shape) != (layer.layout.numel,):
            raise CheckpointError(
                f"expert {expert_id} of {layer.name} has another size in {self.reader.path}",
                got=f"shape {tuple(chunk_C.shape)}",
                expected=f"({layer.layout.numel},)",
                fix="export with the version of transformers that the run was trained with",
            )
        return {name: view[0] for name, view in layer.layout.views(chunk_C[None]).items()}


def require_equal(folder: Path, weights: Weights, dtype: torch.dtype) -> int:
    """Read ``folder`` and raise ``StorageError`` unless it holds ``weights`` as ``dtype``.

    Bit for bit; returns how many tensors were compared.
    """
    cast = FolderDtypes(weights.model, dtype)
    written = HubFolder(folder, weights.model, weights.layers)
    num_tensors = 0
    for name, tensor in written.dense():
        _require_same_bits(name, tensor, cast(name, weights.dense(name)))
        num_tensors += 1
    for layer in weights.layers:
        for expert_id in range(layer.num_experts):
            expected = weights.expert(layer, expert_id)
            for part, tensor in written.expert(layer, expert_id).items():
                name = f"{layer.name}.{part}"
                _require_same_bits(f"{name}[{expert_id}]", tensor, cast(name, expected[part]))
                num_tensors += 1
    return num_tensors


def _require_same_bits(what: str, written: Tensor, expected: Tensor) -> None:
    as_bytes = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (written, expected)]
    if written.dtype == expected.dtype and torch.equal(*as_bytes):
        return
    raise StorageError(
        f"the exported folder does not hold what the checkpoint holds: {what} differs",
        got=f"{written.dtype} of shape {tuple(written.shape)}",
        expected=f"{expected.dtype} of shape {tuple(expected.shape)}, equal bit for bit",
        fix="check the disk, then export again",
    )


def _checkpoint(run_folder: Path, step: int) -> Path:
    checkpoints = run_folder / "checkpoints"
    path = saved_steps(checkpoints).get(step) if step else newest_checkpoint(checkpoints)
    if path is not None:
        return path
    steps = ", ".join(str(saved) for saved in saved_steps(checkpoints))
    raise CheckpointError(
        f"{run_folder} has no checkpoint" + (f" of step {step}" if step else ""),
        got=f"steps {steps}" if steps else f"nothing in {checkpoints}",
        expected="the folder of a run that has saved at least once",
        fix="choose one of these steps" if steps else "give the folder that hecate train made",
    )


def _trained_dtype(reader: CheckpointReader) -> str:
    """The dtype that the run computed in; its master weights may be wider."""
    try:
        dtype = str(reader.meta["config"]["train"]["dtype"])
    except (KeyError, TypeError):
        dtype = ""
    return dtype if dtype in _DTYPES else "float32"
