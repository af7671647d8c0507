"""Write a Hugging Face folder of any family without ever holding the model.

The names and layouts are those that ``save_pretrained`` gives the family: per-expert tensors where
the hub has them, stacked ones where it has those.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.core_model_loading import build_glob_alternation
from transformers.modeling_utils import PreTrainedModel

from hecate.errors import ModelError
from hecate.models.families import MoELayer
from hecate.models.hub.mapping import (
    Recipe,
    WritePlan,
    dense_names,
    expert_names,
    plan_writing,
    splits_experts,
    within_an_expert,
)
from hecate.models.hub.publish import MARKER, publish_folder
from hecate.models.hub.tensor_files import INDEX_FILE, SINGLE_FILE

SHARD_BYTES = 5 * 10**9

_DROPPED_FIELDS = {
    "deepseek_v3": {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
}
"""Fields that the hub's config.json has and transformers no longer keeps, since its code does
nothing else; vLLM still reads them."""

ExpertReader = Callable[[MoELayer, int], dict[str, torch.Tensor]]


def write_hub_folder(
    out: Path,
    model: PreTrainedModel,
    layers: tuple[MoELayer, ...],
    *,
    dense: Iterable[tuple[str, torch.Tensor]],
    expert: ExpertReader,
    dtype: torch.dtype,
    tokenizer_folder: Path | None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write ``model`` (on the meta device; its configuration counts) to the folder ``out``.

    ``dense`` gives what ``dense_names`` lists, in any order, and ``expert`` one expert's tensors
    by name. Floating tensors are written as ``dtype``, except those that the family keeps in
    float32. Holds at most ``shard_bytes`` and what one conversion needs: an expert, or all the
    experts of one layer in families whose hub layout stacks them. Appears whole or not at all
    (see ``publish_folder``).
    """
    with publish_folder(out) as folder:
        write_weights(
            folder, model, layers, dense=dense, expert=expert, dtype=dtype, shard_bytes=shard_bytes
        )
        write_configuration(folder, model, dtype)
        if tokenizer_folder is not None:
            copy_tokenizer(tokenizer_folder, folder)


def write_weights(
    folder: Path,
    model: PreTrainedModel,
    layers: tuple[MoELayer, ...],
    *,
    dense: Iterable[tuple[str, torch.Tensor]],
    expert: ExpertReader,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """The safetensors files and, of several, their index, into the existing ``folder``."""
    names = dense_names(model, layers)
    stacked = [name for layer in layers for name in expert_names(layer)]
    plan = plan_writing(model, [*names, *stacked])
    cast = FolderDtypes(model, dtype)
    shards = _Shards(folder, shard_bytes)
    for name, tensor in _convert_dense(plan, model, names, dense, cast):
        shards.add(name, tensor)
    for layer in layers:
        for name, tensor in _convert_experts(plan, layer, expert, cast):
            shards.add(name, tensor)
    shards.close()


def _convert_dense(
    plan: WritePlan,
    model: PreTrainedModel,
    names: tuple[str, ...],
    dense: Iterable[tuple[str, torch.Tensor]],
    cast: FolderDtypes,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The folder's dense tensors; those that are converted together wait for one another."""
    missing, waiting = set(names), dict[str, torch.Tensor]()
    for name, tensor in dense:
        if name in model.all_tied_weights_keys:
            continue
        if name not in missing:
            raise ModelError(
                f"{name} is no tensor of {type(model).__name__}, or came twice",
                expected="each parameter and persistent buffer outside the experts, once",
            )
        missing.remove(name)
        recipe, waiting[name] = plan.recipes[name], cast(name, tensor)
        if all(member in waiting for member in recipe.names):
            parts = {
                pattern: [waiting.pop(member) for member in members]
                for pattern, members in recipe.sources.items()
            }
            for made, value in recipe.run(parts, plan.shapes).items():
                yield plan.rename(made), value
    if missing:
        raise ModelError(
            f"the model to write lacks {min(missing)}",
            got=f"{len(names) - len(missing)} of {len(names)} dense tensors",
            expected=f"every tensor of {type(model).__name__}",
        )


def _convert_experts(
    plan: WritePlan,
    layer: MoELayer,
    expert: ExpertReader,
    cast: FolderDtypes,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The folder's tensors of one layer's experts: each expert as it comes, or stacked first."""
    stacks: dict[str, torch.Tensor] = {}
    numbered: dict[str, list[list[str]]] = {}
    for name in expert_names(layer):
        recipe = plan.recipes[name]
        if _leaves_one_by_one(recipe):
            numbered[name] = _names_by_expert(plan, recipe, layer)
        else:
            parameter = plan.shapes.get_parameter(name)
            stacks[name] = torch.empty(parameter.shape, dtype=cast.dtype_of(name, parameter.dtype))
    for expert_id in range(layer.num_experts):
        for part, tensor in expert(layer, expert_id).items():
            name = f"{layer.name}.{part}"
            if name in stacks:
                stacks[name][expert_id] = tensor
                continue
            recipe = plan.recipes[name]
            pattern = next(iter(recipe.sources))
            made = recipe.run({pattern: [cast(name, tensor)[None]]}, plan.one_expert)
            yield from zip(numbered[name][expert_id], made.values(), strict=True)
    while stacks:
        recipe = plan.recipes[next(iter(stacks))]
        parts = {
            pattern: [stacks.pop(member) for member in members]
            for pattern, members in recipe.sources.items()
        }
        for made_name, value in recipe.run(parts, plan.shapes).items():
            yield plan.rename(made_name), value


def _leaves_one_by_one(recipe: Recipe) -> bool:
    """Whether each expert becomes tensors of its own, whatever the others hold."""
    converter = recipe.converter
    return (
        converter is not None
        and len(recipe.names) == 1
        and splits_experts(converter)
        and within_an_expert(converter.operations)
    )


def _names_by_expert(plan: WritePlan, recipe: Recipe, layer: MoELayer) -> list[list[str]]:
    """The folder's names of each expert's tensors, found by converting shapes without values."""
    pattern, (name,) = next(iter(recipe.sources.items()))
    every = list(recipe.run({pattern: [plan.shapes.get_parameter(name)]}, plan.shapes))
    per_expert = len(every) // layer.num_experts
    one = recipe.run({pattern: [plan.one_expert.get_parameter(name)]}, plan.one_expert)
    assert every[:: layer.num_experts] == list(one), f"{every} are not in order of experts"
    return [
        [plan.rename(every[kind * layer.num_experts + e]) for kind in range(per_expert)]
        for e in range(layer.num_experts)
    ]


class FolderDtypes:
    """The dtype that each tensor is written in: one for all, but for the family's exceptions."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._exceptions: dict[str, torch.dtype] = model._get_dtype_plan(dtype)
        self._pattern: re.Pattern[str] | None = None
        if self._exceptions:
            self._pattern, self._key_of, _ = build_glob_alternation(list(self._exceptions))

    def dtype_of(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """What the in-model tensor ``name`` of ``dtype`` is written as."""
        if not dtype.is_floating_point:
            return dtype
        match = self._pattern.search(name) if self._pattern is not None else None
        if match is None or match.lastgroup is None:
            return self._dtype
        return self._exceptions[self._key_of[match.lastgroup]]

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The in-model tensor ``name`` as it is written, on the CPU."""
        return tensor.detach().to("cpu", self.dtype_of(name, tensor.dtype))


class _Shards:
    """Collects tensors and writes a file whenever ``shard_bytes`` are together."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._written: list[tuple[Path, tuple[str, ...]]] = []
        self._names: set[str] = set()
        self._total_bytes = 0
        self._total_parameters = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if name in self._names:
            raise ModelError(f"two tensors of the model are called {name} in the folder")
        self._names.add(name)
        size_bytes = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size_bytes > self._shard_bytes:
            self._flush()
        self._pending[name] = _alone(tensor)
        self._pending_bytes += size_bytes
        self._total_bytes += size_bytes
        self._total_parameters += tensor.numel()

    def close(self) -> None:
        """Write what is left, give the files their final names, and write the index of several."""
        self._flush()
        count = len(self._written)
        if count == 1:
            self._written[0][0].rename(self._folder / SINGLE_FILE)
            return
        weight_map = {}
        for number, (path, names) in enumerate(self._written, start=1):
            final = f"model-{number:05d}-of-{count:05d}.safetensors"
            path.rename(self._folder / final)
            weight_map.update(dict.fromkeys(names, final))
        index = {
            "metadata": {
                "total_parameters": self._total_parameters,
                "total_size": self._total_bytes,
            },
            "weight_map": weight_map,
        }
        text = json.dumps(index, indent=2, sort_keys=True)
        (self._folder / INDEX_FILE).write_text(text + "\n", encoding="utf-8")

    def _flush(self) -> None:
        path = self._folder / f"shard-{len(self._written) + 1:05d}.safetensors"
        save_file(self._pending, path, metadata={"format": "pt"})
        self._written.append((path, tuple(self._pending)))
        self._pending, self._pending_bytes = {}, 0


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` contiguous and in storage of its own, as safetensors wants it."""
    whole = tensor.contiguous()
    own = whole.untyped_storage().nbytes() == whole.numel() * whole.element_size()
    return whole if own else whole.clone()


def write_configuration(folder: Path, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """config.json, generation_config.json, and the mark of an export that may be replaced."""
    config: Any = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = str(dtype).removeprefix("torch.")
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # what was read was dequantised
    for field, value in _DROPPED_FIELDS.get(config.model_type, {}).items():
        if not hasattr(config, field):
            setattr(config, field, value)
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    mark = {"written_by": "hecate export"}
    (folder / MARKER).write_text(json.dumps(mark) + "\n", encoding="utf-8")


def copy_tokenizer(tokenizer_folder: Path, folder: Path) -> None:
    """Copy a tokenizer's files and nothing else that may lie beside them (it may be a model's)."""
    for path in sorted(tokenizer_folder.iterdir()):
        tokens = path.suffix in {".json", ".txt", ".model", ".jinja", ".tiktoken"}
        foreign = path.name in {"config.json", "generation_config.json", MARKER}
        if path.is_file() and tokens and not foreign and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
