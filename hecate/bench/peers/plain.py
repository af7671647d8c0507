"""The loop that people write: a transformers model, fused AdamW, DDP where there are ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from hecate.bench.peers.protocol import Job
from hecate.bench.peers.transformers_model import (
    build_model,
    decay_groups,
    fastest_implementations,
    fused_adamw,
    mean_loss,
)
from hecate.bench.turns import Turns
from hecate.bench.workloads import read_batches
from hecate.mesh import ParallelContext


def train(job: Job, ctx: ParallelContext, turns: Turns) -> None:
    """Train with plain transformers and torch."""
    tried = ""
    if job.implementations is None:
        implementations, model, tried = fastest_implementations(job, ctx)
    else:
        implementations = job.implementations
        model = build_model(job, implementations)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = fused_adamw(decay_groups(model, job.optimizer.weight_decay), job.optimizer)
    trained: Any = model
    if ctx.world_size > 1:
        trained = DistributedDataParallel(
            model,
            process_group=ctx.mesh.get_group(),
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            static_graph=True,
        )
    batches = read_batches(job.batches, ctx.rank, ctx.world_size)
    turns.ready(attention=implementations.attention, experts=implementations.experts, tried=tried)
    for rows in batches:
        loss = mean_loss(trained, rows, job, ctx.world_size)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, job.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        turns.step_done(float(loss.detach()) / ctx.world_size)
