"""This project's trainer."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from hecate.bench.peers.protocol import Job
from hecate.bench.turns import Turns
from hecate.bench.workloads import Rows, read_batches
from hecate.config import Config
from hecate.data import MicroBatch
from hecate.data.config import DataConfig
from hecate.mesh import ParallelContext
from hecate.models.build import ModelConfig
from hecate.train.build import build_trainer
from hecate.train.config import RunConfig
from hecate.train.host_memory import keep_freed_memory


def train(job: Job, ctx: ParallelContext, turns: Turns) -> None:
    """Train as ``hecate train`` does, without its logs and checkpoints."""
    keep_freed_memory()
    trainer = build_trainer(
        run_config(job),
        ctx,
        vocab_size=job.workload.vocab_size,
        phase=lambda name: nullcontext(),
    )
    batches = read_batches(job.batches, ctx.rank, ctx.world_size)
    turns.ready(
        attention=trainer.model.config._attn_implementation, experts=trainer.experts.policy.name
    )
    for step, rows in enumerate(batches):
        result = trainer.step.run(step, [micro_batch(rows)])
        turns.step_done(result.loss / ctx.world_size)


def run_config(job: Job) -> RunConfig:
    """The run that equals what the peers do."""
    model = job.workload.model
    if job.adapted is not None:
        model = ModelConfig(path=str(job.adapted.base))
    sections: dict[str, Config] = {
        "data": DataConfig(sequence_tokens=job.workload.sequence_tokens),
        "model": model,
        "lora": job.workload.lora,
        "optimizer": job.optimizer,
    }
    return RunConfig.model_validate(
        {
            "name": "bench",
            "seed": job.seed,
            "train": {
                "steps": job.steps,
                "batch_sequences": job.workload.batch_sequences,
                "dtype": job.dtype,
                "clip_norm": job.clip_norm,
            },
            "schedule": {"kind": "constant"},
            "router": {"balance_loss": 0.0, "z_loss": 0.0},
            **sections,
        }
    )


def micro_batch(rows: Rows) -> MicroBatch:
    """The same rows as the trainer takes them, with the documents that they hold."""
    begins = (rows.position_ids.flatten() == 0).nonzero().flatten()
    ends = torch.cat([begins[1:], begins.new_tensor([rows.position_ids.numel()])])
    return MicroBatch(
        rows.input_ids, rows.labels, rows.position_ids, tuple((ends - begins).tolist())
    )
