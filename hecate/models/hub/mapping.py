"""Between the names and layouts of a folder and those of the model, both ways.

transformers keeps for each family a list of transforms (``transformers.conversion_mapping``):
*renamings*, which change a name only, and *converters*, which make one in-model tensor of several
of the folder's (or the other way round) through a chain of operations. Loading and saving in
transformers apply them to a whole state dict. Here the same transforms are planned on names alone,
so that they can then be applied to a few tensors at a time. No family is named.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    ConversionOps,
    Interleave,
    MergeModulelist,
    PrefixChange,
    SplitModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    apply_converters,
    apply_renamings,
    dot_natural_key,
    rename_source_key,
)
from transformers.integrations.mxfp4 import Mxfp4Dequantize
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from hecate.models.families import MoELayer

RENAMED = ""


@dataclass(frozen=True)
class Recipe:
    """How tensors under one naming become tensors under the other.

    ``sources`` maps each source pattern of ``converter`` to the names that it matched, in natural
    order (so that position ``e`` of a list of experts is expert ``e``); without a converter it is
    ``{RENAMED: (name,)}``. ``target`` is the name that the converter is told, ``outputs`` are the
    names of what it makes (for ``writing``, known only once it has run: ``()``).
    """

    target: str
    outputs: tuple[str, ...]
    converter: WeightConverter | None
    sources: dict[str, tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for names in self.sources.values() for name in names)

    def run(
        self, tensors: Mapping[str, Sequence[torch.Tensor]], model: ModelShapes
    ) -> dict[str, torch.Tensor]:
        """Apply the converter to ``tensors`` (lists by source pattern); the results by name."""
        if self.converter is None:
            return {self.target: tensors[RENAMED][0]}
        converter = copy.deepcopy(self.converter)
        for pattern, parts in tensors.items():
            for part in parts:
                converter.add_tensor(self.target, pattern, pattern, part)  # type: ignore[arg-type]
        made = converter.convert(self.target, model=model, config=model.config)
        return {
            name: (value[0] if isinstance(value, list) else value).detach()
            for name, value in made.items()
        }


class ModelShapes:
    """What conversion operations ask of a model: its configuration, shapes and dtypes.

    A copy without storage, so that the model may be sharded in the meantime. With ``one_expert``
    every parameter has a single row, as an operation must see it that is given one expert instead
    of a stack of them.
    """

    def __init__(self, model: PreTrainedModel, *, one_expert: bool = False) -> None:
        self.config = model.config
        self._tensors = {
            name: torch.empty_like(
                tensor[:1] if one_expert and tensor.ndim else tensor, device="meta"
            )
            for name, tensor in model.state_dict().items()
        }

    def get_parameter(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def get_submodule(self, path: str) -> SimpleNamespace:
        """The tensors that lie directly in the module at ``path``, as attributes."""
        inside = {n: t for n, t in self._tensors.items() if n.rpartition(".")[0] == path}
        return SimpleNamespace(**{name.rpartition(".")[2]: t for name, t in inside.items()})


def dense_names(model: PreTrainedModel, layers: tuple[MoELayer, ...]) -> tuple[str, ...]:
    """The in-model names of everything that is saved outside the experts.

    Parameters and persistent buffers, each tied weight once, under the name that it is tied to.
    """
    experts = {name for layer in layers for name in expert_names(layer)}
    tied = model.all_tied_weights_keys
    return tuple(name for name in model.state_dict() if name not in experts and name not in tied)


def expert_names(layer: MoELayer) -> tuple[str, ...]:
    """The in-model names of a layer's stacked expert tensors, in layout order."""
    return tuple(f"{layer.name}.{tensor.name}" for tensor in layer.layout.tensors)


def plan_reading(
    model: PreTrainedModel, names: Iterable[str], quantizer: HfQuantizer | None = None
) -> tuple[tuple[Recipe, ...], tuple[str, ...]]:
    """Recipes that make the model's tensors of the folder's ``names``; and the names of no use.

    The steps of ``convert_and_load_state_dict_in_model``, on names. ``names`` that the family
    allows to be ignored are left out of the second list.
    """
    transforms = get_model_conversion_mapping(model, hf_quantizer=quantizer)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    prefix, expected = model.base_model_prefix, model.state_dict()
    found: dict[str, tuple[WeightConverter | None, dict[str, list[str]]]] = {}
    unexpected: list[str] = []
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if target not in expected and name in expected:
            target, pattern = rename_source_key(name, [], [], prefix, expected)
        if target not in expected:
            if not _may_ignore(model, target):
                unexpected.append(name)
            continue
        converter = None if pattern is None else by_pattern[pattern]
        _, sources = found.setdefault(target, (converter, {}))
        sources.setdefault(pattern or RENAMED, []).append(name)
    return tuple(
        Recipe(target, _outputs(target, converter), converter, _frozen(sources))
        for target, (converter, sources) in found.items()
    ), tuple(unexpected)


def _outputs(target: str, converter: WeightConverter | None) -> tuple[str, ...]:
    if converter is None:
        return (target,)
    first = converter.target_patterns[0]
    return tuple(target.replace(first, pattern) for pattern in converter.target_patterns)


def _frozen(sources: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    return {pattern: tuple(names) for pattern, names in sources.items()}


def _may_ignore(model: PreTrainedModel, target: str) -> bool:
    """Whether the family says that a folder may hold ``target`` in vain."""
    patterns = set(model._keys_to_ignore_on_load_unexpected or ())
    patterns |= {r"rotary_emb\.inv_freq", r"(^|\.)position_ids$"}  # buffers of old releases
    return any(re.search(pattern, target) for pattern in patterns)


def may_be_absent(model: PreTrainedModel, name: str) -> bool:
    """Whether the family says that a folder may lack ``name``."""
    return any(re.search(p, name) for p in model._keys_to_ignore_on_load_missing or ())


@dataclass(frozen=True)
class WritePlan:
    """How the model's tensors become the folder's: recipes, then renamings of what they make.

    ``recipes`` has each under every in-model name that it needs.
    """

    recipes: dict[str, Recipe]
    renamings: tuple[WeightRenaming, ...]
    shapes: ModelShapes
    one_expert: ModelShapes

    def rename(self, name: str) -> str:
        """The folder's name of what a recipe has made."""
        return apply_renamings(name, list(self.renamings))


def plan_writing(model: PreTrainedModel, names: Iterable[str]) -> WritePlan:
    """The steps of ``revert_weight_conversion``, on names."""
    transforms = [
        transform.reverse_transform()
        for transform in reversed(get_model_conversion_mapping(model, add_legacy=False))
        if not isinstance(transform, PrefixChange)
    ]
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    found: dict[str, tuple[WeightConverter | None, dict[str, list[str]]]] = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = apply_converters(name, converters)
        converter = None if pattern is None else by_pattern[pattern]
        _, sources = found.setdefault(target, (converter, {}))
        sources.setdefault(pattern or RENAMED, []).append(name)
    recipes = {}
    for target, (converter, sources) in found.items():
        recipe = Recipe(target, (), converter, _frozen(sources))
        recipes.update(dict.fromkeys(recipe.names, recipe))
    shapes, one_expert = ModelShapes(model), ModelShapes(model, one_expert=True)
    return WritePlan(recipes, tuple(renamings), shapes, one_expert)


def within_an_expert(operations: Sequence[ConversionOps]) -> bool:
    """Whether the chain, given one expert as ``[1, ...]``, gives that expert as ``[1, ...]``.

    True only for operations known to leave the experts' dimension alone, and for the merging of a
    list of experts (first) or the splitting into one (last).
    """
    for position, operation in enumerate(operations):
        match operation:
            case MergeModulelist(dim=0):
                ok = position == 0
            case SplitModulelist(dim=0):
                ok = position == len(operations) - 1
            case Chunk(dim=dim) | Concatenate(dim=dim) | Interleave(dim=dim):
                ok = dim >= 1
            case Transpose(dim0=dim0, dim1=dim1):
                ok = min(dim0, dim1) >= 1
            case _:
                ok = isinstance(operation, Mxfp4Dequantize)
        if not ok:
            return False
    return True


def merges_experts(converter: WeightConverter) -> bool:
    """Whether the converter starts from a list of experts, each a tensor of its own."""
    return isinstance(converter.operations[0], MergeModulelist)


def splits_experts(converter: WeightConverter) -> bool:
    """Whether the converter ends in a list of experts, each a tensor of its own."""
    return isinstance(converter.operations[-1], SplitModulelist)
