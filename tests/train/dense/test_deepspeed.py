"""DeepSpeed's ZeRO under our experts: the reference's steps, and experts that stay each rank's own.

fp32 is the widest that DeepSpeed computes in. Against the fp64 reference losses, norms and
gradients agree to 1e-5; AdamW divides by the size of a gradient, so that an element whose gradient
is rounding noise may move by the learning rate either way.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from parity import STEPS, Case, Outcome, assert_near, reference_of, train_on_rank
from ranks import RankError, run_ranks
from toy_models import toy_config

from hecate.mesh import ParallelContext
from hecate.models.build import ModelConfig
from hecate.train.build import Trainer, build_trainer
from hecate.train.config import RunConfig, TrainConfig
from hecate.train.dense import DeepSpeedConfig, DenseConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
    ),
]


def zero(stage: Any, **settings: Any) -> DenseConfig:
    return DenseConfig(backend="deepspeed", deepspeed=DeepSpeedConfig(stage=stage, **settings))


BASE = Case(dtype="float32")


def assert_close(ours: Outcome, reference: Outcome, case: Case) -> None:
    torch.testing.assert_close(ours.losses, reference.losses, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.auxiliary, reference.auxiliary, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(ours.norms, reference.norms, rtol=1e-5, atol=0)
    assert ours.counts == reference.counts
    assert reference.gradients.keys() <= ours.gradients.keys()
    for name, gradient in reference.gradients.items():
        error = (ours.gradients[name].double() - gradient).abs().max()
        assert error <= 1e-5 * gradient.abs().max().clamp(min=1e-3), f"gradient of {name}"
    for name, value in reference.parameters.items():
        if name.endswith("inv_freq"):
            continue
        error = (ours.parameters[name].double() - value).abs()
        assert error.max() <= 2 * STEPS * case.learning_rate, name
        assert error.mean() <= 1e-3 * case.learning_rate, name


@pytest.mark.parametrize(
    ("case", "world_size"),
    [
        pytest.param(replace(BASE, accumulation=2, checkpointing=True, dense=zero(1)), 2, id="1"),
        pytest.param(
            replace(
                BASE,
                family="deepseek_v3",
                tied=True,
                bias_update_rate=0.01,
                restless=True,
                dense=zero(2),
            ),
            3,
            id="2-tied-bias",
        ),
        pytest.param(
            replace(BASE, accumulation=3, checkpointing=True, restless=True, dense=zero(3)),
            3,
            id="3",
        ),
        pytest.param(replace(BASE, tied=True, dense=zero(3)), 1, id="3-tied-alone"),
        pytest.param(
            replace(BASE, accumulation=2, dense=zero(2, offload_optimizer={"device": "cpu"})),
            2,
            id="2-offload",
        ),
        pytest.param(
            replace(
                BASE,
                family="gpt_oss",
                accumulation=2,
                dense=zero(3, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"}),
            ),
            2,
            id="3-offload-all",
        ),
    ],
)
def test_steps_equal_the_reference(case: Case, world_size: int) -> None:
    reference = reference_of(replace(case, dtype="float64"))
    for outcome in run_ranks(train_on_rank, world_size, case):
        assert_close(outcome, reference, case)


@pytest.mark.parametrize("stage", [1, 3])
def test_bf16_steps_stay_near_the_fp32_reference(stage: int) -> None:
    case = replace(BASE, dtype="bfloat16", dense=zero(stage))
    reference = reference_of(replace(case, dtype="float32"))
    for outcome in run_ranks(train_on_rank, 2, case):
        assert_near(outcome, reference, case)


def trainer_of(ctx: ParallelContext, stage: int) -> Trainer:
    sizes = toy_config("qwen3_moe").to_diff_dict()
    for key in ("model_type", "transformers_version", "architectures", "dtype"):
        sizes.pop(key, None)
    config = RunConfig(
        name="experts",
        model=ModelConfig(family="qwen3_moe", sizes=sizes),
        train=TrainConfig(steps=1, batch_sequences=4),
        dense=zero(stage),
        data={"sequence_tokens": 16},
    )

    return build_trainer(config, ctx, vocab_size=128, phase=lambda _: contextlib.nullcontext())


def without_deepspeed(ctx: ParallelContext) -> None:
    sys.modules["deepspeed"] = None  # type: ignore[assignment]  # as where it is not installed
    trainer_of(ctx, 2)


def test_an_installation_without_deepspeed_says_what_to_install() -> None:
    with pytest.raises(RankError, match=r"pip install 'hecate\[deepspeed\]'"):
        run_ranks(without_deepspeed, 1)


def test_fp64_is_refused() -> None:
    with pytest.raises(RankError, match="train.dtype float64 with dense.backend deepspeed"):
        run_ranks(train_on_rank, 1, replace(BASE, dtype="float64", dense=zero(2)))


def experts_of_each_rank(ctx: ParallelContext) -> list[dict[str, Any]]:
    return [experts_under(ctx, stage) for stage in (1, 2, 3)]


def experts_under(ctx: ParallelContext, stage: int) -> dict[str, Any]:
    """The experts as the trainer made them, and whether DeepSpeed can see any of them."""
    trainer = trainer_of(ctx, stage)
    seen = {id(p) for p in trainer.root.parameters()}
    return {
        "seen": [id(p) in seen for p in trainer.experts.parameters()],
        "chunks": [
            dict(zip(shard.expert_ids, shard.parameter.detach().clone(), strict=True))
            for shard in trainer.experts.shards
        ],
    }


def test_experts_of_two_ranks_stay_different() -> None:
    """Had DeepSpeed broadcast them, rank 1's would be rank 0's; had it sharded them, gone."""
    stages = zip(*run_ranks(experts_of_each_rank, 2), strict=True)
    (alone,) = run_ranks(experts_of_each_rank, 1)
    for outcomes, whole in zip(stages, alone, strict=True):
        for outcome in outcomes:
            assert not any(outcome["seen"])
        for layer, expected in enumerate(whole["chunks"]):
            held = [outcome["chunks"][layer] for outcome in outcomes]
            assert all(held) and sorted([*held[0], *held[1]]) == sorted(expected)
            for own in held:
                for expert_id, chunk in own.items():
                    assert torch.equal(chunk, expected[expert_id])
            for one in held[0].values():
                assert not any(torch.equal(one, other) for other in held[1].values())
