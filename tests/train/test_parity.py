"""A training step over N ranks equals a single process of plain transformers and AdamW."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gpus import gpus
from parity import Case, assert_equal, assert_near, reference_of, train_on_rank
from ranks import run_ranks

from hecate.train.dense.config import DenseConfig

WORLDS = (1, 2, 3, 4)
BASE = Case()
DDP = replace(BASE, dense=DenseConfig(backend="ddp"))


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(BASE, id="qwen3_moe"),
        pytest.param(replace(BASE, accumulation=3, checkpointing=True), id="accumulate-checkpoint"),
        pytest.param(
            replace(BASE, family="deepseek_v3", bias_update_rate=0.01, checkpointing=True),
            id="deepseek_v3-bias",
        ),
        pytest.param(replace(BASE, family="gpt_oss"), id="gpt_oss"),
    ],
)
def test_fp64_steps_equal_the_reference(case: Case, world_size: int) -> None:
    outcomes = run_ranks(train_on_rank, world_size, case)
    reference = reference_of(case)
    for outcome in outcomes:
        assert_equal(outcome, reference, 1e-10, 1e-9)


@pytest.mark.parametrize(
    ("case", "world_size"),
    [
        pytest.param(
            replace(BASE, family="mixtral", balance_loss=0.0, z_loss=0.0), 3, id="mixtral-no-aux"
        ),
        pytest.param(replace(BASE, family="mixtral", balance_loss=0.0), 2, id="mixtral-z-only"),
        pytest.param(
            replace(BASE, family="olmoe", z_loss=0.0, checkpointing=True),
            4,
            id="olmoe-balance-only",
        ),
        pytest.param(replace(BASE, accumulation=3), 2, id="accumulate"),
        pytest.param(replace(BASE, tied=True), 1, id="tied-embeddings-1"),
        pytest.param(replace(BASE, tied=True), 2, id="tied-embeddings-2"),
        pytest.param(
            replace(
                BASE, family="deepseek_v3", balance_loss=0.0, z_loss=0.0, bias_update_rate=0.01
            ),
            2,
            id="bias-only",
        ),
        pytest.param(replace(BASE, experts=3), 4, id="more-ranks-than-experts"),
        pytest.param(replace(BASE, one_token=True, rows=4), 3, id="most-experts-without-tokens"),
        pytest.param(replace(BASE, unlabelled=1), 3, id="a-rank-without-labels"),
        pytest.param(replace(BASE, attention="sdpa"), 2, id="sdpa"),
        pytest.param(
            replace(BASE, family="gpt_oss", checkpointing=True, accumulation=3),
            3,
            id="gpt_oss-checkpoint",
        ),
    ],
)
def test_fp64_variants_equal_the_reference(case: Case, world_size: int) -> None:
    reference = reference_of(case)
    for outcome in run_ranks(train_on_rank, world_size, case):
        assert_equal(outcome, reference, 1e-10, 1e-9)


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(BASE, id="qwen3_moe"),
        pytest.param(replace(BASE, rematerialize=True), id="rematerialize"),
        pytest.param(
            replace(BASE, accumulation=3, checkpointing=True, rematerialize=True),
            id="accumulate-checkpoint-rematerialize",
        ),
        pytest.param(
            replace(BASE, family="gpt_oss", accumulation=3, checkpointing=True),
            id="gpt_oss-accumulate-checkpoint",
        ),
        pytest.param(replace(BASE, experts=3), id="few-experts"),
    ],
)
def test_steps_equal_the_reference_while_experts_are_copied_and_move(
    case: Case, world_size: int
) -> None:
    reference = reference_of(case)
    for outcome in run_ranks(train_on_rank, world_size, replace(case, restless=True)):
        assert_equal(outcome, reference, 1e-10, 1e-9)


@pytest.mark.parametrize(
    "policy", ["fssdp", "expert_parallel", "shadowing", "swapping", "replication", "fsdp"]
)
def test_every_policy_trains_the_same_model(policy: str) -> None:
    case = replace(BASE, one_token=True, rows=4)  # few experts take everything
    reference = reference_of(case)
    for outcome in run_ranks(train_on_rank, 3, replace(case, policy=policy)):
        assert_equal(outcome, reference, 1e-10, 1e-9)


@pytest.mark.parametrize(
    ("case", "world_size"),
    [
        pytest.param(replace(DDP, tied=True), 1, id="tied-1"),
        pytest.param(
            replace(DDP, family="deepseek_v3", bias_update_rate=0.01, checkpointing=True),
            2,
            id="deepseek_v3-bias-checkpoint-2",
        ),
        pytest.param(replace(DDP, accumulation=3, restless=True), 3, id="accumulate-restless-3"),
        pytest.param(replace(DDP, tied=True, accumulation=2, checkpointing=True), 4, id="tied-4"),
    ],
)
def test_steps_under_ddp_equal_the_reference(case: Case, world_size: int) -> None:
    reference = reference_of(case)
    for outcome in run_ranks(train_on_rank, world_size, case):
        assert_equal(outcome, reference, 1e-10, 1e-9)


BF16 = replace(BASE, dtype="bfloat16")


@pytest.mark.parametrize(
    ("case", "world_size"),
    [
        *(pytest.param(BF16, world_size, id=f"{world_size}") for world_size in WORLDS),
        pytest.param(replace(BF16, dense=DDP.dense), 3, id="ddp-3"),
    ],
)
def test_bf16_steps_stay_near_the_fp32_reference(case: Case, world_size: int) -> None:
    reference = reference_of(replace(case, dtype="float32"))
    for outcome in run_ranks(train_on_rank, world_size, case):
        assert_near(outcome, reference, case)


@pytest.mark.parametrize(
    ("case", "world_size"),
    [
        pytest.param(BASE, 1, id="1", marks=gpus(1)),
        pytest.param(
            replace(BASE, checkpointing=True, accumulation=3), 1, id="1-checkpoint", marks=gpus(1)
        ),
        pytest.param(BASE, 2, id="2", marks=gpus(2)),
        pytest.param(replace(BASE, restless=True), 2, id="2-restless", marks=gpus(2)),
        pytest.param(
            replace(BASE, restless=True, rematerialize=True, checkpointing=True, accumulation=3),
            2,
            id="2-restless-rematerialize-checkpoint",
            marks=gpus(2),
        ),
        pytest.param(replace(BASE, experts=3, restless=True), 4, id="4-few", marks=gpus(4)),
    ],
)
def test_fp64_steps_on_gpus_equal_the_reference_on_a_cpu(case: Case, world_size: int) -> None:
    reference = reference_of(case)
    for outcome in run_ranks(train_on_rank, world_size, case, device="cuda"):
        assert_equal(outcome, reference, 1e-10, 1e-9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "world_size", [pytest.param(1, marks=gpus(1)), pytest.param(2, marks=gpus(2))]
)
def test_steps_with_grouped_gemms_on_gpus_stay_near_the_reference(
    dtype: str, world_size: int
) -> None:
    case = replace(BASE, dtype=dtype, restless=world_size > 1)
    reference = reference_of(replace(case, dtype="float32"))
    for outcome in run_ranks(train_on_rank, world_size, case, device="cuda"):
        assert_near(outcome, reference, case)
