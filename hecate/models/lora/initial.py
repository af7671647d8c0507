"""First values of adapters: by the seed and the name alone, never by the world size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from hecate.models.build import seed_of
from hecate.models.lora.experts import AdaptedLayer
from hecate.models.lora.linear import LORA_A, is_adapter


def initial_adapters(
    named_shapes: Iterable[tuple[str, tuple[int, ...]]], seed: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """The full CPU tensor of every adapter among parameters of these names and shapes."""
    for name, shape in named_shapes:
        if is_adapter(name):
            yield name, _initial(name, f".{LORA_A}." in name, shape, seed)


def initial_expert_adapter(
    layer: AdaptedLayer, expert_id: int, seed: int
) -> dict[str, torch.Tensor]:
    """The adapters of one expert by their names in ``layer.layout``."""
    return {
        tensor.name: _initial(
            f"{layer.name}.{expert_id}.{tensor.name}",
            tensor.name.endswith(LORA_A),
            tensor.shape,
            seed,
        )
        for tensor in layer.layout.tensors
    }


def _initial(name: str, random: bool, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """PEFT's: ``A`` as a linear layer starts, ``B`` zero, so that nothing changes at first."""
    value = torch.zeros(shape)
    if random:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(seed, name))
            nn.init.kaiming_uniform_(value, a=math.sqrt(5))
    return value
