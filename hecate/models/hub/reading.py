"""Read a Hugging Face folder of any family a tensor, or an expert, at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer
from transformers.utils.quantization_config import Mxfp4Config

from hecate.errors import ModelError
from hecate.models.families import MoELayer
from hecate.models.hub.mapping import (
    ModelShapes,
    Recipe,
    dense_names,
    may_be_absent,
    merges_experts,
    plan_reading,
    within_an_expert,
)
from hecate.models.hub.tensor_files import TensorFile, TensorFolder, open_safetensors


class HubFolder:
    """A folder's weights under the names and in the layouts of ``model``.

    ``model`` is of the folder's family and sizes, whole, and may be on the meta device; ``layers``
    are its MoE layers. Once the folder is open the model may be sharded.

    Opening reads headers only and raises ``ModelError`` for a folder that lacks a tensor, holds one
    that the model has no place for or one of another shape, is cut short, or is quantised in a way
    that cannot be undone here (MXFP4 can: it is dequantised while it is read).

    Tensors come in the folder's dtype, on the CPU. Reading one expert touches that expert's bytes
    only, except in families whose conversion is not known to leave experts apart: there all of the
    layer's experts are converted once, and kept until another layer's are asked for.
    """

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        layers: tuple[MoELayer, ...],
        *,
        opener: Callable[[Path], TensorFile] = open_safetensors,
    ) -> None:
        quantizer = _quantizer(folder)
        self._files = TensorFolder(folder, opener=opener)
        self._model = model
        self._shapes = ModelShapes(model)
        self._one_expert = ModelShapes(model, one_expert=True)
        recipes, unexpected = plan_reading(model, self._files.names(), quantizer)
        self._recipes = {output: recipe for recipe in recipes for output in recipe.outputs}
        self._dense = dense_names(model, layers)
        self._whole_layer = ""
        self._whole: dict[str, torch.Tensor] = {}
        if unexpected:
            raise ModelError(
                f"{self._files.path(unexpected[0])} holds {unexpected[0]}, for which "
                f"{type(model).__name__} has no place",
                got=f"{len(unexpected)} such tensors",
                expected="the tensors of the model that config.json describes",
                fix="see that config.json belongs to these weights (or remove model.sizes)",
            )
        self._check_dense()
        for layer in layers:
            self._check_layer(layer)

    @property
    def absent(self) -> tuple[str, ...]:
        """In-model names that the folder lacks and the family allows it to: not from ``dense``."""
        return tuple(name for name in self._dense if self._source(name) is None)

    def dense(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter and persistent buffer outside the experts, by in-model name.

        A tied weight comes once, under the name that the other is tied to.
        """
        made: dict[str, torch.Tensor] = {}
        for name in self._dense:
            recipe = self._source(name)
            if recipe is None:
                continue
            output = name if name in recipe.outputs else recipe.target
            if output not in made:
                made.update(self._convert(recipe))
            tensor = made.pop(output)
            self._check_shape(name, tensor, recipe)
            self._check_tied(name, tensor)
            yield name, tensor

    def expert(self, layer: MoELayer, expert_id: int) -> dict[str, torch.Tensor]:
        """One expert's tensors by their names in the experts module, each without a leading E."""
        tensors = {}
        for part in layer.layout.tensors:
            name = f"{layer.name}.{part.name}"
            recipe = self._recipes[name]
            tensor = self._read_expert(recipe, name, layer, expert_id)
            if tuple(tensor.shape) != part.shape:
                raise self._wrong_shape(name, tuple(tensor.shape), part.shape, recipe)
            tensors[part.name] = tensor
        return tensors

    def _read_expert(
        self, recipe: Recipe, name: str, layer: MoELayer, expert_id: int
    ) -> torch.Tensor:
        converter = recipe.converter
        if converter is not None and not within_an_expert(converter.operations):
            if self._whole_layer != layer.name:
                self._whole_layer, self._whole = layer.name, {}
            if name not in self._whole:
                self._whole.update(self._convert(recipe))
            return self._whole[name][expert_id]
        if converter is None or not merges_experts(converter):
            parts = {
                pattern: [self._files.read_row(stacked, expert_id) for stacked in names]
                for pattern, names in recipe.sources.items()
            }
        else:
            parts = {
                pattern: [self._files.read(names[expert_id])]
                for pattern, names in recipe.sources.items()
            }
        made = self._run(recipe, parts, self._one_expert)
        return made[name][0]

    def _convert(self, recipe: Recipe) -> dict[str, torch.Tensor]:
        parts = {
            pattern: [self._files.read(name) for name in names]
            for pattern, names in recipe.sources.items()
        }
        return self._run(recipe, parts, self._shapes)

    def _run(
        self, recipe: Recipe, parts: Mapping[str, list[torch.Tensor]], model: ModelShapes
    ) -> dict[str, torch.Tensor]:
        try:
            made = recipe.run(parts, model)
            return {output: made[output] for output in recipe.outputs}
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            raise ModelError(
                f"{self._files.path(recipe.names[0])}: {recipe.names[0]} does not fit "
                f"{recipe.target}",
                got=f"{str(error).splitlines()[0]} (from {self._sources(recipe)})",
                expected="the shapes of the model that config.json describes",
                fix="see that config.json belongs to these weights",
            ) from error

    def _expected(self, name: str) -> tuple[int, ...]:
        return tuple(self._shapes.get_parameter(name).shape)

    def _source(self, name: str) -> Recipe | None:
        """The recipe of ``name``, or of a weight tied to it where the folder kept that one."""
        if name in self._recipes:
            return self._recipes[name]
        tied = (t for t, source in self._model.all_tied_weights_keys.items() if source == name)
        return next((self._recipes[t] for t in tied if t in self._recipes), None)

    def _check_dense(self) -> None:
        for name in self._dense:
            recipe = self._source(name)
            if recipe is None:
                if may_be_absent(self._model, name):
                    continue
                raise ModelError(
                    f"{self._files.listing} lacks {name}",
                    got=f"{len(self._files.names())} other tensors",
                    expected=f"every tensor of {type(self._model).__name__}",
                    fix="copy the folder again from where the model came from",
                )
            if recipe.converter is None:
                found = self._files.shape(recipe.names[0])
                if found != self._expected(name):
                    raise self._wrong_shape(name, found, self._expected(name), recipe)

    def _check_layer(self, layer: MoELayer) -> None:
        for part in layer.layout.tensors:
            name = f"{layer.name}.{part.name}"
            recipe = self._recipes.get(name)
            if recipe is None:
                raise ModelError(
                    f"{self._files.listing} lacks the experts of {layer.name}",
                    got=f"no tensor for {name}",
                    expected=f"{part.name} of {layer.num_experts} experts",
                    fix="copy the folder again from where the model came from",
                )
            converter, expected = recipe.converter, (layer.num_experts, *part.shape)
            if converter is None:
                self._check_stacked(recipe, name, expected, dims=len(expected))
            elif within_an_expert(converter.operations):
                if merges_experts(converter):
                    self._check_merged(recipe, converter.source_patterns, layer)
                else:
                    self._check_stacked(recipe, name, expected, dims=1)

    def _check_stacked(
        self, recipe: Recipe, name: str, expected: tuple[int, ...], *, dims: int
    ) -> None:
        """The tensors that ``name`` is made of must agree with it in the first ``dims`` sizes."""
        for stacked in recipe.names:
            found = self._files.shape(stacked)
            if found[:dims] != expected[:dims] or (dims > 1 and len(found) != dims):
                raise self._wrong_shape(name, found, expected, recipe)

    def _check_merged(self, recipe: Recipe, patterns: list[str], layer: MoELayer) -> None:
        """Each pattern must have matched one tensor of each expert, all of one shape."""
        for pattern in patterns:
            names = recipe.sources.get(pattern, ())
            missing = _gap(names, layer.num_experts)
            if missing or len(names) != layer.num_experts:
                raise ModelError(
                    f"{self._files.listing} lacks {missing or 'a tensor like ' + pattern}",
                    got=f"{len(names)} tensors like {pattern} in {layer.name}",
                    expected=f"one for each of {layer.num_experts} experts",
                    fix="copy the folder again from where the model came from",
                )
            shapes = [self._files.shape(name) for name in names]
            for name, shape in zip(names, shapes, strict=True):
                if shapes.count(shape) <= len(shapes) // 2:
                    usual = max(shapes, key=shapes.count)
                    raise ModelError(
                        f"{self._files.path(name)}: {name} has another shape than its siblings",
                        got=str(shape),
                        expected=str(usual),
                        fix="copy the file again from where the model came from",
                    )

    def _check_shape(self, name: str, tensor: torch.Tensor, recipe: Recipe) -> None:
        if tuple(tensor.shape) != self._expected(name):
            raise self._wrong_shape(name, tuple(tensor.shape), self._expected(name), recipe)

    def _check_tied(self, name: str, tensor: torch.Tensor) -> None:
        """A folder may hold both of two tied weights, but then they must be equal."""
        for other, source in self._model.all_tied_weights_keys.items():
            if source != name or name not in self._recipes or other not in self._recipes:
                continue
            recipe = self._recipes[other]
            if not torch.equal(self._convert(recipe)[other], tensor):
                raise ModelError(
                    f"{self._files.path(recipe.names[0])}: {recipe.names[0]} differs from {name}",
                    got="two different tensors",
                    expected="equal ones, since config.json ties them",
                    fix='set "tie_word_embeddings": false in config.json',
                )

    def _wrong_shape(
        self, name: str, found: tuple[int, ...], expected: tuple[int, ...], recipe: Recipe
    ) -> ModelError:
        first = recipe.names[0]
        return ModelError(
            f"{self._files.path(first)}: {first} has the wrong shape for {name}",
            got=f"{found} (from {self._sources(recipe)})",
            expected=str(expected),
            fix="see that config.json belongs to these weights (or remove model.sizes)",
        )

    def _sources(self, recipe: Recipe) -> str:
        firsts = [names[0] for names in recipe.sources.values()]
        return ", ".join(f"{name} {self._files.shape(name)}" for name in firsts)


def _gap(names: tuple[str, ...], num_experts: int) -> str:
    """The first name that a list of one tensor per expert lacks, as far as names show it."""
    rows = [name.split(".") for name in names]
    if len(rows) < 2 or len({len(row) for row in rows}) > 1:
        return ""
    columns = [c for c in range(len(rows[0])) if len({row[c] for row in rows}) > 1]
    if len(columns) != 1:
        return ""
    present = {row[columns[0]] for row in rows}
    for expert_id in range(num_experts):
        if str(expert_id) not in present:
            return ".".join(
                str(expert_id) if c == columns[0] else word for c, word in enumerate(rows[0])
            )
    return ""


def _quantizer(folder: Path) -> HfQuantizer | None:
    """What undoes the folder's quantisation; ``None`` where there is none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        quantization = dict(config.get("quantization_config") or {})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{folder / 'config.json'} cannot be read",
            got=str(error),
            expected="the model's configuration, as JSON",
            fix="copy the file again from where the model came from",
        ) from error
    if not quantization:
        return None
    method = str(quantization.get("quant_method", "an unnamed method"))
    if method == "mxfp4":
        return Mxfp4HfQuantizer(Mxfp4Config(dequantize=True), pre_quantized=True)
    raise ModelError(
        f"{folder} is quantised ({method}), and cannot be trained as it is",
        got=f"quantization_config of {method} in config.json",
        expected="weights in float32, bfloat16 or float16 (or MXFP4, which is dequantised)",
        fix="take the unquantised release of the model, or dequantise it with transformers and "
        "write it with save_pretrained",
    )
