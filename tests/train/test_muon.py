"""Muon over sharded matrices and owned experts: its steps, its state, what it refuses."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from parity import (
    Case,
    assert_equal,
    document_lengths,
    global_batches,
    optimizer_of,
    reference_of,
    sizes_of,
    train_on_rank,
)
from pydantic import ValidationError
from ranks import run_ranks
from stopped_runs import Case as RunCase
from stopped_runs import Runs, final_state, numbers
from stopped_runs import train_on_rank as train_run
from torch import nn

from hecate.data import MicroBatch
from hecate.errors import ModelError
from hecate.mesh import ParallelContext
from hecate.models.build import ModelConfig
from hecate.train.build import build_trainer
from hecate.train.config import RunConfig
from hecate.train.dense import DenseConfig
from hecate.train.footprint.estimate import estimate
from hecate.train.muon import orthogonalised
from hecate.train.optim import OptimizerConfig, build_optimizer

MUON = Case(muon=True, learning_rate=0.02)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_fp64_steps_equal_the_reference_while_experts_move(world_size: int) -> None:
    case = replace(MUON, restless=True)
    reference = reference_of(case)
    for outcome in run_ranks(train_on_rank, world_size, case):
        assert_equal(outcome, reference, 1e-9, 1e-8)


def test_fp64_steps_equal_the_reference_where_dense_parameters_are_whole() -> None:
    case = replace(MUON, family="mixtral", dense=DenseConfig(backend="ddp"), accumulation=2)
    reference = reference_of(case)
    for outcome in run_ranks(train_on_rank, 2, case):
        assert_equal(outcome, reference, 1e-9, 1e-8)


def test_steps_of_one_matrix_are_those_of_torch() -> None:
    """Both iterate in bf16, whose products may round apart by some of its last bits."""
    generator = torch.Generator().manual_seed(1)
    for shape in ((12, 20), (20, 12), (16, 16)):
        ours = nn.Parameter(torch.randn(shape, generator=generator))
        start = ours.detach().clone()
        theirs = nn.Parameter(start.clone())
        config = OptimizerConfig(kind="muon", learning_rate=0.1, weight_decay=0.3)
        optimizer = build_optimizer(config, [("q", ours)], [])
        torchs = torch.optim.Muon(
            [theirs], lr=0.1, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        for _ in range(3):
            ours.grad = torch.randn(shape, generator=generator)
            theirs.grad = ours.grad.clone()
            optimizer.step()
            torchs.step()
        assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()


def test_singular_values_come_near_one_and_of_each_matrix_for_itself() -> None:
    generator = torch.Generator().manual_seed(2)
    stack = torch.randn(3, 8, 20, generator=generator, dtype=torch.float64)
    stack[2] *= 1e-3
    result = orthogonalised(stack, steps=5, dtype=torch.float64)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6 and values.max() < 1.3
    alone = orthogonalised(stack[2], steps=5, dtype=torch.float64)
    torch.testing.assert_close(result[2], alone)
    assert not orthogonalised(torch.zeros(2, 4, 4), steps=5, dtype=torch.float32).any()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("muon"))


def test_a_run_goes_on_bit_for_bit_and_at_another_world_within_rounding(runs: Runs) -> None:
    case = RunCase(restless=True, optimizer="muon")
    straight = runs.straight(case, 2)
    resumed = runs.stopped(case, 2, "equal")
    run_ranks(train_run, 2, case.config(runs.folder, resumed.name), "auto")
    assert numbers(resumed) == numbers(straight)
    ours, theirs = final_state(resumed), final_state(straight)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
    moments = {key.split("/")[-1] for key in theirs if key.startswith("optimizer/expert/")}
    assert moments == {"momentum_buffer"}
    wider = runs.stopped(case, 2, "wider")
    run_ranks(train_run, 3, case.config(runs.folder, wider.name), "auto")
    for old, new in zip(numbers(straight), numbers(wider), strict=True):
        assert new["loss"] == pytest.approx(old["loss"], rel=1e-2)


def run_config(**changes: Any) -> RunConfig:
    whole: dict[str, Any] = {
        "name": "muon",
        "model": ModelConfig(family=MUON.family, sizes=sizes_of(MUON)).model_dump(),
        "train": {"steps": 2, "batch_sequences": MUON.rows},
        "optimizer": {"kind": "muon"},
        "data": {"sequence_tokens": 24},
    }
    return RunConfig.model_validate(whole | changes)


def kept_bytes(ctx: ParallelContext, config: RunConfig) -> int:
    trainer = build_trainer(
        config, ctx, vocab_size=128, phase=lambda name: contextlib.nullcontext()
    )
    ids, labels, positions = global_batches(MUON)[0][0]
    lengths = tuple(length for row in range(MUON.rows) for length in document_lengths(row))
    trainer.step.run(0, [MicroBatch(ids, labels, positions, lengths)])
    states = trainer.optimizer.state.values()
    return sum(t.nbytes for state in states for t in state.values() if t.ndim)


def test_the_estimate_counts_one_moment_of_what_is_orthogonalised() -> None:
    config = run_config()
    footprint = estimate(config, world_size=1, vocab_size=128, device_type="cpu", process_bytes=0)
    assert run_ranks(kept_bytes, 1, config) == [footprint.optimizer]
    whole = estimate(
        run_config(optimizer={}), world_size=1, vocab_size=128, device_type="cpu", process_bytes=0
    )
    assert footprint.optimizer < 0.7 * whole.optimizer


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dense": {"backend": "deepspeed"}}, "muon needs whole matrices"),
        ({"lora": {"rank": 2}, "model": {"path": "somewhere"}}, "muon trains whole matrices"),
        ({"optimizer": {"muon": {"momentum": 0.5}}}, "muon is set, but kind is adamw"),
    ],
)
def test_what_muon_does_not_go_with_is_refused_by_name(changes: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        run_config(**changes)


def build_with_biases(ctx: ParallelContext) -> str:
    case = replace(MUON, family="gpt_oss")
    config = run_config(
        model=ModelConfig(family="gpt_oss", sizes=sizes_of(case)).model_dump(),
        optimizer=optimizer_of(case).model_dump(),
    )
    with pytest.raises(ModelError) as caught:
        build_trainer(config, ctx, vocab_size=128, phase=lambda name: contextlib.nullcontext())
    return str(caught.value)


def test_experts_with_biases_are_refused_by_name() -> None:
    (message,) = run_ranks(build_with_biases, 1)
    assert "not of matrices alone" in message and "gate_up_proj_bias" in message
