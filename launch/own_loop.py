"""FSSDP in a training loop of one's own: a transformers model, FSDP2 for its dense part, AdamW.

torchrun --standalone --nproc-per-node 2 launch/own_loop.py

Text is made up: each token is followed by another that only a fixed table tells, now and then by
any token at all. The loss begins near ln(64) = 4.2 and can fall to about 0.7.
"""

from __future__ import annotations

import torch
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3MoeConfig

from hecate.fssdp import shard_experts
from hecate.mesh import ParallelContext, open_mesh, sum_over

STEPS, ROWS, ROW_TOKENS, VOCABULARY = 20, 8, 128, 64


def build_model() -> PreTrainedModel:
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        moe_intermediate_size=128,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    )
    torch.manual_seed(0)  # all ranks begin with the same weights
    return AutoModelForCausalLM.from_config(config)


def synthetic_rows(step: int, rank: int) -> torch.Tensor:
    """``[ROWS, ROW_TOKENS]`` token ids, int64, CPU: those of one rank in one step."""
    follower = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1 + 1000 * step + rank)
    columns = [torch.randint(VOCABULARY, (ROWS,), generator=draw)]
    for _ in range(ROW_TOKENS - 1):
        surprise = torch.rand(ROWS, generator=draw) < 0.1
        anything = torch.randint(VOCABULARY, (ROWS,), generator=draw)
        columns.append(torch.where(surprise, anything, follower[columns[-1]]))
    return torch.stack(columns, dim=1)


def train(ctx: ParallelContext) -> None:
    model = build_model()
    experts = shard_experts(model, ctx)
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=ctx.mesh, ignored_params=set(experts.parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    for step in range(STEPS):
        ids = synthetic_rows(step, ctx.rank).to(ctx.device)
        with experts.step():
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
        norm = experts.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        experts.end_step(optimizer)

        mean = float(sum_over(ctx.groups.control, loss.detach().cpu())) / ctx.world_size
        if ctx.rank == 0:
            print(f"step {step:2}  loss {mean:.3f}  gradient norm {norm:.2f}", flush=True)


if __name__ == "__main__":
    with open_mesh() as ctx:
        train(ctx)
