"""DeepSpeed's engine over the transformers model, with DeepSpeed's MoE layer for its MoE blocks.

ZeRO stage 0: with experts spread over all ranks, stage 1 has only the small dense part to shard,
and measured no faster on either model of the benchmark.

The boundary file of DeepSpeed, which not every installation has: nothing else imports it, and only
functions here do. Its newer AutoEP is left out: DeepSpeed 0.19 builds it only with transformers
releases older than 5.24.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hecate.bench.peers.peft_model import with_deepspeed_adapter
from hecate.bench.peers.protocol import Implementations, Job
from hecate.bench.peers.transformers_model import (
    decay_groups,
    fused_adamw,
    mean_loss,
    plain_model,
)
from hecate.bench.turns import Turns
from hecate.bench.workloads import Rows, read_batches
from hecate.fssdp.routed import Override
from hecate.mesh import ParallelContext


def train(job: Job, ctx: ParallelContext, turns: Turns) -> None:
    """Train with DeepSpeed's engine; experts are spread over all ranks."""
    batches = read_batches(job.batches, ctx.rank, ctx.world_size)
    engine = build_engine(job, ctx)
    turns.ready(attention=_implementations(job).attention, experts="MoE layer, ZeRO 0")
    for rows in batches:
        turns.step_done(one_step(engine, rows, job, ctx) / ctx.world_size)


def one_step(engine: Any, rows: Rows, job: Job, ctx: ParallelContext) -> float:
    """Train on one step's rows; this rank's loss over the mean number of labels a rank."""
    loss = mean_loss(engine, rows, job, ctx.world_size)
    engine.backward(loss)
    engine.step()
    return float(loss.detach())


def build_engine(job: Job, ctx: ParallelContext, override: Override | None = None) -> Any:
    """A DeepSpeed engine over the transformers model with its MoE blocks replaced.

    ``override(layer, top_k_index_TK)`` gives the choices in the place of the gates' own.
    """
    import deepspeed
    from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer

    # What DeepSpeed's launcher would say; the group that is there needs no address.
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK=str(ctx.local_rank), RANK=str(ctx.rank))
    os.environ.update(WORLD_SIZE=str(ctx.world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    model = plain_model(job, _implementations(job))
    for index, layer in enumerate(model.model.layers):
        layer.mlp = _DeepSpeedBlock(layer.mlp, ctx)
        if override is not None:
            moe_layer = layer.mlp.moe.deepspeed_moe
            moe_layer.gate = _ReplayedGate(moe_layer.gate, index, override)
    if job.adapted is not None:
        model = with_deepspeed_adapter(model, job, ctx)
    config = {
        "train_micro_batch_size_per_gpu": job.workload.batch_sequences // ctx.world_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": job.clip_norm,
        "zero_optimization": {"stage": 0},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,
    }
    groups: Any = decay_groups(model, job.optimizer.weight_decay)
    groups = split_params_into_different_moe_groups_for_optimizer(groups)
    groups = [group for group in groups if group["params"]]
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=fused_adamw(groups, job.optimizer), config=config
    )
    engine.train()
    return engine


def _implementations(job: Job) -> Implementations:
    """The attention that was fastest; transformers' own experts are replaced anyhow."""
    attention = job.implementations.attention if job.implementations else "sdpa"
    return Implementations(attention, "eager")


class _DeepSpeedBlock(nn.Module):
    """``deepspeed.moe.layer.MoE`` with the weights of a transformers MoE block."""

    def __init__(self, block: Any, ctx: ParallelContext) -> None:
        super().__init__()
        from deepspeed.comm import init_distributed
        from deepspeed.moe.layer import MoE

        init_distributed(dist_backend="gloo", verbose=False)
        gate_up_EFD, down_EDF = block.experts.gate_up_proj, block.experts.down_proj
        num_experts, D, Fd = down_EDF.shape
        self.moe = MoE(
            D,
            _GatedExpert(D, Fd),
            num_experts=num_experts,
            ep_size=ctx.world_size,
            k=block.gate.top_k,
            drop_tokens=False,
            use_rts=False,
            top2_2nd_expert_sampling=False,
        )
        first = ctx.rank * num_experts // ctx.world_size
        with torch.no_grad():
            self.moe.deepspeed_moe.gate.wg.weight.copy_(block.gate.weight)
            for e, expert in enumerate(self.moe.deepspeed_moe.experts.deepspeed_experts):
                expert.gate_up.weight.copy_(gate_up_EFD[first + e])
                expert.down.weight.copy_(down_EDF[first + e])

    def forward(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.moe(hidden_BSD)[0]
        return output.view_as(hidden_BSD)


class _ReplayedGate(nn.Module):
    """A DeepSpeed gate whose logits are raised where the replayed choices are.

    Its own gating then chooses these, with its own weights, positions and capacity.
    """

    RAISED = 100.0  # beyond what any other logit makes up for

    def __init__(self, gate: Any, layer: int, override: Override) -> None:
        super().__init__()
        self.gate, self._layer, self._override = gate, layer, override

    def _set_ep_group(self, ep_group: Any) -> None:
        self.gate._set_ep_group(ep_group)

    def forward(
        self, x_TD: torch.Tensor, used_token: Any, sparse_routes: bool, use_tutel: bool
    ) -> Any:
        from deepspeed.moe.sharded_moe import top1gating, top2gating

        gate = self.gate
        logits_TE = F.linear(x_TD.float(), gate.wg.weight.float())
        chosen_TK = self._override(self._layer, logits_TE.topk(gate.k).indices)
        raised_TK = torch.full_like(chosen_TK, self.RAISED, dtype=logits_TE.dtype)
        logits_TE = logits_TE.scatter_add(1, chosen_TK, raised_TK)
        limits = (logits_TE, gate.capacity_factor, gate.min_capacity)
        if gate.k == 1:
            return top1gating(
                *limits,
                used_token,
                drop_tokens=gate.drop_tokens,
                use_rts=gate.use_rts,
                ep_group=gate.ep_group,
                sparse_routes=sparse_routes,
                use_tutel=use_tutel,
            )
        return top2gating(
            *limits,
            drop_tokens=gate.drop_tokens,
            ep_group=gate.ep_group,
            top2_2nd_expert_sampling=gate.top2_2nd_expert_sampling,
            sparse_routes=sparse_routes,
        )


class _GatedExpert(nn.Module):
    """One expert with one GEMM for gate and up, as transformers' experts have it."""

    def __init__(self, D: int, Fd: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(D, 2 * Fd, bias=False)
        self.down = nn.Linear(Fd, D, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        output: torch.Tensor = self.down(F.silu(gate) * up)
        return output
