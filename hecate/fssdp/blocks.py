"""The blocks of a model: what its layers of experts lie in, each with an attention of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hecate.models.families import MoELayer


def find_blocks(model: nn.Module, layers: Sequence[MoELayer]) -> tuple[nn.Module, ...]:
    """Every element of the lists that hold the blocks of ``layers``, also those without experts.

    A layer's block is the outermost element of a ``ModuleList`` that has no other layer inside.
    Empty where some layer has none.
    """
    lists: dict[str, None] = {}
    for layer in layers:
        parts = layer.name.split(".")
        for depth in range(1, len(parts)):
            parent, block = ".".join(parts[:depth]), ".".join(parts[: depth + 1])
            within = sum(f"{other.name}.".startswith(f"{block}.") for other in layers)
            if within == 1 and isinstance(model.get_submodule(parent), nn.ModuleList):
                lists[parent] = None
                break
        else:
            return ()
    return tuple(block for name in lists for block in model.get_submodule(name).children())


def on_start(blocks: Sequence[nn.Module], starts: Callable[[], None]) -> list[RemovableHandle]:
    """Call ``starts`` whenever a block begins, after the hook in which FSDP2 gathers its weights.

    That hook goes to the front, whichever was registered first. Returns what takes ours away.
    """

    def begin(*_: Any) -> None:
        starts()

    begins = torch.compiler.disable(begin)  # it communicates: compiled code breaks off here
    return [block.register_forward_pre_hook(begins) for block in blocks]
