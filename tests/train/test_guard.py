"""A step that is left out leaves nothing behind; steps in a row take a run back."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from jobs import metrics
from parity import ROW_TOKENS, Case, document_lengths, global_batches, sizes_of
from ranks import RankError, run_ranks
from stopped_runs import LAST, STEPS, Runs, train_on_rank
from stopped_runs import Case as RunCase

from hecate.checkpoint.reader import CheckpointReader
from hecate.data import MicroBatch
from hecate.fssdp.config import ExpertsConfig
from hecate.fssdp.routing import RouterConfig
from hecate.mesh import ParallelContext
from hecate.models.build import ModelConfig
from hecate.train.build import Trainer, build_trainer
from hecate.train.config import RunConfig, TrainConfig
from hecate.train.dense import DenseConfig, saved_buffers
from hecate.train.optim import ScheduleConfig
from hecate.train.spikes import GuardConfig
from hecate.train.state import save_state

CASE = Case(family="deepseek_v3", rows=4, dtype="float32", accumulation=2)
SPIKE_AT = 3
ZERO = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)


def trainer_of(ctx: ParallelContext, dense: DenseConfig) -> Trainer:
    config = RunConfig(
        name="guard",
        model=ModelConfig(family=CASE.family, sizes=sizes_of(CASE)),
        router=RouterConfig(bias_update_rate=0.01),
        experts=ExpertsConfig(policy="expert_parallel"),
        train=TrainConfig(steps=9, batch_sequences=8, accumulation=2, clip_norm=0.5),
        dense=dense,
        guard=GuardConfig(action="skip", warmup=2),
        schedule=ScheduleConfig(kind="constant"),
        data={"sequence_tokens": ROW_TOKENS},
    )
    return build_trainer(config, ctx, vocab_size=128, phase=lambda _: contextlib.nullcontext())


def steps_of(ctx: ParallelContext) -> Iterator[list[MicroBatch]]:
    share = CASE.rows // ctx.world_size
    rows = slice(ctx.rank * share, (ctx.rank + 1) * share)
    lengths = tuple(n for row in range(rows.start, rows.stop) for n in document_lengths(row))
    for batches in global_batches(CASE):
        yield [MicroBatch(i[rows], la[rows], p[rows], lengths) for i, la, p in batches]


def spike(ctx: ParallelContext, dense: DenseConfig) -> dict[str, dict[str, Any]]:
    """Three times the same training: one step left out, or a spike on the last rank alone."""
    return {
        "without": train_with(ctx, dense, 0.0),
        "high": train_with(ctx, dense, 1e6),
        "nan": train_with(ctx, dense, math.nan),
    }


def train_with(ctx: ParallelContext, dense: DenseConfig, factor: float) -> dict[str, Any]:
    """Train on all batches, the loss of one times ``factor``; with 0, without that batch."""
    trainer, scale = trainer_of(ctx, dense), [1.0]
    if ctx.rank == ctx.world_size - 1:
        trainer.root.register_forward_hook(lambda _, __, loss: loss * scale[0])
    taken = []
    for number, batches in enumerate(steps_of(ctx)):
        if number == SPIKE_AT and not factor:
            continue
        scale[0] = factor if number == SPIKE_AT else 1.0
        taken.append(trainer.step.run(number, batches).verdict.take)
    state = {k: v for k, v in save_state(trainer, ctx.rank).items() if not k.startswith("rng/")}
    state |= {name: buffer for name, buffer in saved_buffers(trainer.model)}
    whole = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in state.items()}
    return {
        "taken": taken,
        "updates": trainer.step.updates,
        "state": {key: value.detach().clone() for key, value in whole.items()},
    }


def zero(stage: int, **settings: Any) -> DenseConfig:
    return DenseConfig(backend="deepspeed", deepspeed={"stage": stage, **settings})


@pytest.mark.parametrize(
    "dense",
    [
        pytest.param(DenseConfig(), id="fsdp2"),
        pytest.param(DenseConfig(backend="ddp"), id="ddp"),
        pytest.param(zero(1), id="zero1", marks=ZERO),
        pytest.param(zero(3), id="zero3", marks=ZERO),
        pytest.param(zero(2, offload_optimizer={"device": "cpu"}), id="zero2-offload", marks=ZERO),
        pytest.param(zero(3, offload_optimizer={"device": "cpu"}), id="zero3-offload", marks=ZERO),
    ],
)
def test_a_step_that_is_left_out_was_never_there(dense: DenseConfig) -> None:
    """Weights, moments and router biases are those of a run that did not see it, on all ranks."""
    for runs in run_ranks(spike, 2, dense):
        expected = runs.pop("without")
        for ours in runs.values():
            assert ours["taken"] == [number != SPIKE_AT for number in range(5)]
            assert ours["updates"] == 4
            assert ours["state"].keys() == expected["state"].keys()
            for key, value in expected["state"].items():
                assert torch.equal(ours["state"][key], value), key


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    yield Runs(tmp_path_factory.mktemp("guard"))


def test_steps_in_a_row_take_weights_and_moments_back(runs: Runs) -> None:
    """What the last checkpoint's moments have seen: all steps taken, less those taken back."""
    run = runs.straight(RunCase(guard="rewind", backend="ddp"), 2)
    lines = metrics(run)
    skipped = [line["skipped_steps"] for line in lines]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert skipped == sorted(skipped) and skipped[-1] > 1
    assert all(math.isfinite(line["loss"]) for line in lines)
    meta = CheckpointReader(run / "checkpoints" / LAST).meta
    guard = meta["guard"]
    assert guard["rewinds"] > 0 and guard["skipped"] == skipped[-1]
    assert meta["updates"] <= STEPS - guard["skipped"]
    assert meta["data"]["sequence"] == STEPS * 5  # the data went on


def test_a_rewind_before_the_first_checkpoint_is_an_error(runs: Runs) -> None:
    config = RunCase(guard="rewind").config(runs.folder, "no-checkpoint")
    settings = {"guard": config.guard.model_copy(update={"deviations": 1e-9, "rewind_after": 1})}
    late = {"checkpoint": config.checkpoint.model_copy(update={"every": 100})}
    with pytest.raises(RankError, match="there is no checkpoint"):
        run_ranks(train_on_rank, 1, config.model_copy(update=settings | late), "none")
