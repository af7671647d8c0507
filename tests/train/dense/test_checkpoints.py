"""A checkpoint is the same under every dense backend: what one saved, another goes on from."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jobs import metrics
from ranks import run_ranks
from stopped_runs import Case, Runs, final_state, numbers, train_on_rank

pytestmark = pytest.mark.slow

ZERO = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
WIDE = Case(dtype="float64")
DDP = replace(WIDE, backend="ddp")
NARROW = Case()


def zero(stage: int, **settings: str) -> Case:
    return replace(NARROW, backend="deepspeed", stage=stage, **settings)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    yield Runs(tmp_path_factory.mktemp("checkpoints"))


def resumed(runs: Runs, saved: Case, before: int, case: Case, world_size: int) -> Path:
    """The run of ``saved`` on ``before`` ranks, gone on from its checkpoint as ``case`` says."""
    name = f"{saved.dense_name}-{before}-{case.dense_name}-{world_size}-{case.dtype}"
    run = runs.stopped(saved, before, name)
    run_ranks(train_on_rank, world_size, case.config(runs.folder, name), "auto")
    return run


@pytest.mark.parametrize(
    ("saved", "before", "case", "world_size", "tolerance"),
    [
        pytest.param(DDP, 2, WIDE, 3, 1e-9, id="ddp-2-fsdp2-3"),
        pytest.param(WIDE, 2, DDP, 1, 1e-9, id="fsdp2-2-ddp-1"),
        pytest.param(zero(1), 2, NARROW, 3, 1e-4, id="zero1-2-fsdp2-3", marks=ZERO),
        pytest.param(zero(3), 2, zero(2), 3, 1e-4, id="zero3-2-zero2-3", marks=ZERO),
        pytest.param(NARROW, 2, zero(3), 1, 1e-4, id="fsdp2-2-zero3-1", marks=ZERO),
    ],
)
def test_another_backend_or_world_goes_on_within_rounding(
    runs: Runs, saved: Case, before: int, case: Case, world_size: int, tolerance: float
) -> None:
    run = resumed(runs, saved, before, case, world_size)
    straight = runs.straight(saved, before)
    for old, new in zip(numbers(straight), numbers(run), strict=True):
        for value in ("loss", "auxiliary_loss", "grad_norm"):
            assert new[value] == pytest.approx(old[value], rel=tolerance, abs=tolerance), value
    ours, theirs = final_state(run), final_state(straight)
    for key, tensor in theirs.items():
        if not key.startswith("rng/"):
            torch.testing.assert_close(ours[key], tensor, rtol=tolerance, atol=tolerance)
    shutil.rmtree(run)


@ZERO
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(zero(1), id="1"),
        pytest.param(zero(3, dtype="bfloat16"), id="3-bfloat16"),
    ],
)
def test_an_equal_world_under_deepspeed_goes_on_bit_for_bit(runs: Runs, case: Case) -> None:
    run = resumed(runs, case, 2, case, 2)
    straight = runs.straight(case, 2)
    assert numbers(run) == numbers(straight)
    ours, theirs = final_state(run), final_state(straight)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
    shutil.rmtree(run)


@ZERO
def test_deepspeed_trains_the_model_that_fsdp2_trains(runs: Runs) -> None:
    """And its checkpoint has every tensor that FSDP2's has, under the same names."""
    theirs, ours = runs.straight(NARROW, 2), runs.straight(zero(3), 2)
    for old, new in zip(metrics(theirs), metrics(ours), strict=True):
        assert new["loss"] == pytest.approx(old["loss"], rel=1e-5)
        assert new["mfu"] > 0
    expected, got = final_state(theirs), final_state(ours)
    assert {k: (v.shape, v.dtype) for k, v in got.items()} == {
        k: (v.shape, v.dtype) for k, v in expected.items()
    }
