"""The conversion mapping in both directions, on names and shapes of many families."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import meta_model
from transformers import AutoConfig
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    Interleave,
    MergeModulelist,
    SplitModulelist,
    Transpose,
)

from hecate.models.families import find_moe_layers
from hecate.models.hub import HubFolder, dense_names
from hecate.models.hub.mapping import expert_names, plan_writing, within_an_expert
from hecate.models.hub.tensor_files import TensorFile, TensorSlice

# Renamings, per-expert names of four kinds, stacked tensors, fused projections, interleaved ones.
MORE_FAMILIES = (
    "bailing_hybrid",
    "deepseek_v4",
    "ernie4_5_moe",
    "glm4_moe",
    "granitemoe",
    "hy_v4",
    "inkling2_loop_text",
    "inkling2_text",
    "jamba",
    "minimax_m2",
    "nemotron_h",
    "phimoe",
    "qwen3_next",
    "sarvam_moe",
    "zaya",
)


class ShapesFile:
    """A safetensors file that holds shapes only."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def keys(self) -> Iterable[str]:
        return self._tensors.keys()

    def get_slice(self, name: str) -> TensorSlice:
        return ShapesSlice(self._tensors[name])


class ShapesSlice:
    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._tensor[index]


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_what_is_written_is_read_back(family: str, tmp_path: Path) -> None:
    """At the family's own sizes, on the meta device: each name and shape survives both ways."""
    model = meta_model(AutoConfig.for_model(family, num_hidden_layers=4))
    layers = find_moe_layers(model)
    names = [*dense_names(model, layers), *(n for layer in layers for n in expert_names(layer))]
    shapes = model.state_dict()
    plan, on_disk = plan_writing(model, names), dict[str, torch.Tensor]()
    for recipe in {id(recipe): recipe for recipe in plan.recipes.values()}.values():
        parts = {p: [shapes[name] for name in members] for p, members in recipe.sources.items()}
        for made, tensor in recipe.run(parts, plan.shapes).items():
            on_disk[plan.rename(made)] = tensor
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()

    def opener(path: Path) -> TensorFile:
        return ShapesFile(on_disk)

    hub = HubFolder(tmp_path, model, layers, opener=opener)
    dense = dict(hub.dense())
    assert dense.keys() == set(dense_names(model, layers))
    assert all(tensor.shape == shapes[name].shape for name, tensor in dense.items())
    for layer in layers:
        for part, tensor in hub.expert(layer, layer.num_experts - 1).items():
            assert tensor.shape == shapes[f"{layer.name}.{part}"].shape[1:]


def test_operations_that_leave_experts_apart() -> None:
    assert within_an_expert([MergeModulelist(dim=0), Concatenate(dim=1)])
    assert within_an_expert([Chunk(dim=1), SplitModulelist(dim=0)])
    assert within_an_expert([Transpose(1, 2), Interleave(dim=1)])


@pytest.mark.parametrize(
    "operations",
    [
        [MergeModulelist(dim=1)],
        [Concatenate(dim=1), MergeModulelist(dim=0)],
        [Concatenate(dim=0)],
        [Chunk(dim=-1)],
        [Transpose(0, 1)],
        [SplitModulelist(dim=0), Chunk(dim=1)],
    ],
)
def test_operations_that_may_mix_experts(operations: list[Any]) -> None:
    assert not within_an_expert(operations)
