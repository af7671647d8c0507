"""FSDP2 over the whole transformers model: experts are gathered like everything else.

``fully_shard`` for each decoder layer and the root, fused AdamW on the shards. Each rank computes
its own tokens alone, so that uneven loads cost it nothing; all weights of all experts travel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from hecate.bench.peers.protocol import Implementations, Job
from hecate.bench.peers.transformers_model import (
    build_model,
    decay_groups,
    fused_adamw,
    mean_loss,
)
from hecate.bench.workloads import Rows
from hecate.fssdp.routed import Override
from hecate.mesh import ParallelContext


class Fsdp2:
    """The model and its optimizer on this rank, one step at a time.

    ``override(layer, top_k_index_TK)`` gives the choices in the place of the routers' own; the
    weights stay those that the router gave to its best choices.
    """

    def __init__(
        self,
        job: Job,
        ctx: ParallelContext,
        implementations: Implementations,
        override: Override | None = None,
    ) -> None:
        self._job, self._world_size = job, ctx.world_size
        self.model = build_model(job, implementations)
        if override is not None:
            for index, layer in enumerate(self.model.model.layers):
                layer.mlp.gate.register_forward_hook(_Chosen(index, override))
        bf16 = job.dtype == "bfloat16"
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if bf16 else None,
            reduce_dtype=torch.float32 if bf16 else None,
        )
        # Gathered once a step, not again for the backward pass: the fastest setting.
        for layer in self.model.model.layers:
            fully_shard(layer, mesh=ctx.mesh, mp_policy=policy, reshard_after_forward=False)
        fully_shard(self.model, mesh=ctx.mesh, mp_policy=policy, reshard_after_forward=False)
        self._optimizer = fused_adamw(
            decay_groups(self.model, job.optimizer.weight_decay), job.optimizer
        )

    def step(self, rows: Rows) -> float:
        """Train on one step's rows; this rank's loss over the mean number of labels a rank."""
        loss = mean_loss(self.model, rows, self._job, self._world_size)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._job.clip_norm, foreach=True)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())


class _Chosen:
    """A forward hook of a router that returns (logits, weights, indices)."""

    def __init__(self, layer: int, override: Override) -> None:
        self._layer, self._override = layer, override

    def __call__(self, router: nn.Module, inputs: Any, output: Any) -> Any:
        logits_TE, weights_TK, top_k_index_TK = output
        return logits_TE, weights_TK, self._override(self._layer, top_k_index_TK)
