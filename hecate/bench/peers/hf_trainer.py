"""``transformers.Trainer`` with nothing on but training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from hecate.bench.peers.protocol import Implementations, Job
from hecate.bench.peers.transformers_model import build_model
from hecate.bench.turns import Turns
from hecate.bench.workloads import read_batches
from hecate.mesh import ParallelContext


def train(job: Job, ctx: ParallelContext, turns: Turns) -> None:
    """Train with ``Trainer``, which adopts the process group that is there."""
    implementations = job.implementations or Implementations("sdpa", "grouped_mm")
    model = build_model(job, implementations)
    trainer = _Trainer(
        model=model, args=_arguments(job, ctx), train_dataset=_PackedRows(job.batches)
    )
    trainer.add_callback(_TakeTurns(trainer, turns, implementations))
    trainer.train()


def _arguments(job: Job, ctx: ParallelContext) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(job.batches.parent / "trainer"),
        use_cpu=ctx.device.type == "cpu",
        seed=job.seed,
        max_steps=job.steps,
        per_device_train_batch_size=job.workload.batch_sequences // ctx.world_size,
        train_sampling_strategy="sequential",
        learning_rate=job.optimizer.learning_rate,
        adam_beta1=job.optimizer.beta1,
        adam_beta2=job.optimizer.beta2,
        adam_epsilon=job.optimizer.eps,
        weight_decay=job.optimizer.weight_decay,
        max_grad_norm=job.clip_norm,
        optim="adamw_torch_fused",
        lr_scheduler_type="constant",
        bf16=job.dtype == "bfloat16",
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        ddp_static_graph=True if ctx.world_size > 1 else None,
    )


class _PackedRows(Dataset[dict[str, torch.Tensor]]):
    """Every row of every step, in order; the sampler deals them to ranks as the others do."""

    def __init__(self, batches: Path) -> None:
        steps = read_batches(batches, rank=0, world_size=1)
        self._input_ids = torch.cat([rows.input_ids for rows in steps])
        self._labels = torch.cat([rows.labels for rows in steps])
        self._position_ids = torch.cat([rows.position_ids for rows in steps])

    def __len__(self) -> int:
        return len(self._input_ids)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {
            "input_ids": self._input_ids[row],
            "position_ids": self._position_ids[row],
            "labels": self._labels[row],
            "shift_labels": self._labels[row],
        }


class _Trainer(Trainer):
    """Keeps each step's loss, which ``Trainer`` otherwise tells only as an average of many."""

    last_loss: torch.Tensor

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        self.last_loss = loss.detach()
        return loss


class _TakeTurns(TrainerCallback):
    """Hands the loop's steps to ``turns``, which waits inside ``on_step_end`` between turns."""

    def __init__(self, trainer: _Trainer, turns: Turns, implementations: Implementations) -> None:
        self._trainer = trainer
        self._turns = turns
        self._implementations = implementations

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._turns.ready(
            attention=self._implementations.attention, experts=self._implementations.experts
        )

    def on_step_end(self, args: TrainingArguments, *others: Any, **kwargs: Any) -> None:
        self._turns.step_done(float(self._trainer.last_loss) / args.world_size)
