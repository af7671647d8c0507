"""How much of a model trains, said before it does: a target that matched nothing shows here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from hecate.models.lora.experts import AdaptedLayer
from hecate.models.lora.linear import is_adapter


@dataclass(frozen=True)
class TrainableShare:
    """Parameters of a model, adapters among them, and those that train.

    ``linears``: linear layers with an adapter. ``experts``: routed experts with adapters of
    their own, over ``layers`` layers.
    """

    trainable: int
    total: int
    linears: int
    experts: int
    layers: int

    def __str__(self) -> str:
        return (
            f"LoRA trains {self.trainable:,} of {self.total:,} parameters "
            f"({self.trainable / self.total:.2%}): adapters on {self.linears} linear layers and on "
            f"each of {self.experts} routed experts in {self.layers} layers"
        )


def trainable_share(
    named_dense: Iterable[tuple[str, nn.Parameter]], layers: Iterable[AdaptedLayer]
) -> TrainableShare:
    """``named_dense``: every parameter outside the experts, sharded or not; ``layers``: all."""
    dense = list(named_dense)
    adapters = [(name, p.numel()) for name, p in dense if is_adapter(name)]
    trainable = sum(numel for _, numel in adapters)
    total = sum(p.numel() for _, p in dense)
    experts = adapted = 0
    for layer in layers:
        of_layer = layer.num_experts * layer.layout.numel
        trainable += of_layer
        total += of_layer + layer.num_experts * layer.frozen.numel
        if layer.projections:
            experts += layer.num_experts
            adapted += 1
    return TrainableShare(trainable, total, len(adapters) // 2, experts, adapted)
