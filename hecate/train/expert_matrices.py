"""Which matrices an expert's chunk consists of, for an optimizer that treats each for itself."""

from __future__ import annotations

import torch
from torch import nn

from hecate.errors import ModelError
from hecate.models.families import MoELayer
from hecate.train.muon import Matrices


def expert_matrices(layer: MoELayer, module: nn.Module) -> Matrices:
    """The matrices in a table of chunks of ``layer``; gate and up projections are two.

    Raises ``ModelError`` for experts with biases, which are no matrices.
    """
    for tensor in layer.layout.tensors:
        if len(tensor.shape) != 2:
            raise ModelError(
                f"the experts of {layer.name} are not of matrices alone",
                got=f"{tensor.name} of shape {tensor.shape} in each",
                expected="matrices, which Muon orthogonalises",
                fix="set optimizer.kind to adamw for this family",
            )
    outputs = -1 if module.is_transposed else -2

    def matrices(table_eC: torch.Tensor) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for name, view in layer.layout.views(table_eC).items():
            if name != "gate_up_proj":
                found.append(view)
            elif module.is_concatenated:
                found += view.chunk(2, dim=outputs)
            elif outputs == -1:
                found += [view[..., ::2], view[..., 1::2]]
            else:
                found += [view[..., ::2, :], view[..., 1::2, :]]
        return found

    return matrices
