"""What a dense backend is: the contract that FSDP2, DDP and DeepSpeed meet alike."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from hecate.fssdp import ShardedExperts
from hecate.mesh import ParallelContext
from hecate.models.loss import CausalLoss
from hecate.train.dense.config import DenseConfig
from hecate.train.optim import OptimizerConfig


@dataclass(frozen=True)
class DenseJob:
    """What a backend is made of; the model's dense parameters are on the meta device."""

    root: CausalLoss
    model: PreTrainedModel
    experts: ShardedExperts
    ctx: ParallelContext
    compute_dtype: torch.dtype
    config: DenseConfig
    optimizer: OptimizerConfig
    accumulation: int


class DenseBackend(Protocol):
    """The dense parameters of a model on this rank, from their allocation to their checkpoint.

    Made, it has allocated them; then ``targets`` are written, and ``start`` makes it ready to
    train. A step is, for each micro-batch, ``micro_batch`` around ``forward`` and ``backward``,
    then ``square_sum``, and at last either ``update`` or ``discard``. Gradients of ``masters`` are
    sums over ranks, not means: the loss is already divided by the tokens of all. All methods but
    ``targets`` and ``masters`` are collective over all ranks.
    """

    def __init__(self, job: DenseJob) -> None: ...

    def targets(self) -> dict[str, torch.Tensor]:
        """Where the initial weights belong, by each of their names; to be set by ``assign``."""
        ...

    def start(self) -> None:
        """The weights are written: get ready to train."""
        ...

    def masters(self) -> dict[str, nn.Parameter]:
        """What the trainer's own optimizer is to step, by name; empty where the backend does it."""
        ...

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around one micro-batch of a step; after the ``last`` one gradients are whole."""
        ...

    def forward(
        self,
        input_ids_BS: torch.Tensor,
        labels_BS: torch.Tensor,
        position_ids_BS: torch.Tensor,
        document_lengths: tuple[int, ...],
    ) -> torch.Tensor:
        """What ``CausalLoss`` gives, to be followed by ``backward``; only in a step."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """The backward pass of this rank's part of the loss."""
        ...

    def square_sum(self) -> torch.Tensor:
        """What this rank adds to the squared norm of gradients beside the masters': fp64, CPU."""
        ...

    def update(self, *, factor: float, learning_rate: float) -> None:
        """After the trainer's optimizer stepped: bring the model up to date.

        A backend with an optimizer of its own steps it, with its gradients times ``factor``.
        """
        ...

    def discard(self) -> None:
        """Forget the gradients of this step, and change nothing."""
        ...

    def release(self) -> None:
        """Give back what a forward pass without a backward one left whole."""
        ...

    def saved(self, *, moments: bool) -> dict[str, torch.Tensor]:
        """What a checkpoint holds beside the masters, by key; weights, or the optimizer's moments.

        A key is on one rank, whichever, with its whole tensor.
        """
        ...

    def unfilled(self, *, moments: bool) -> dict[str, torch.Tensor]:
        """Memory for all that ``saved`` names, for a checkpoint to fill."""
        ...

    def restore(self, filled: dict[str, torch.Tensor], *, step: int) -> None:
        """Take up what a checkpoint filled, after ``step`` steps; masters were filled before."""
        ...
