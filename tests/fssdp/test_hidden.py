"""What attention hides is measured once on every rank's behalf, and found again."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from ranks import run_ranks
from toy_models import toy_config

from hecate.mesh import ParallelContext
from hecate.models.build import ModelConfig
from hecate.planner.costs import StepCosts
from hecate.train.build import build_trainer
from hecate.train.config import RunConfig, TrainConfig


def costs_of(ctx: ParallelContext, cache: str, **experts: object) -> StepCosts | None:
    fields = toy_config("qwen3_moe").to_diff_dict()
    for key in ("model_type", "transformers_version", "architectures", "dtype"):
        fields.pop(key, None)
    config = RunConfig(
        name="hidden",
        model=ModelConfig(family="qwen3_moe", sizes=fields),
        train=TrainConfig(steps=1, batch_sequences=2),
        data={"sequence_tokens": 16, "cache": cache},
        experts=experts,
    )
    trainer = build_trainer(
        config, ctx, vocab_size=128, phase=lambda _: contextlib.nullcontext(), fill=True
    )
    assert trainer.model.training and trainer.root.training
    return getattr(trainer.experts.policy, "costs", None)


def kept(cache: Path) -> list[Path]:
    return [file for file in (cache / "costs").iterdir() if "between_s" in file.read_text()]


def test_seconds_between_layers_are_alike_on_all_ranks_and_remembered(tmp_path):
    first = run_ranks(costs_of, 2, str(tmp_path))
    assert first[0] == first[1]
    assert 0 < first[0].hidden_gather_s < 1
    assert first[0].hidden_reduce_s == 2 * first[0].hidden_gather_s
    (file,) = kept(tmp_path)
    file.write_text(json.dumps({"between_s": 0.25}))
    for costs in run_ranks(costs_of, 2, str(tmp_path)):
        assert (costs.hidden_gather_s, costs.hidden_reduce_s) == (0.25, 0.5)
    # gathered again beside the backward pass of attention, which the reduction shares it with
    outcomes = run_ranks(turning, 2, str(tmp_path))
    assert [(c.hidden_gather_s, c.hidden_reduce_s) for c in outcomes] == [(0.25, 0.25)] * 2


def turning(ctx: ParallelContext, cache: str) -> StepCosts | None:
    return costs_of(ctx, cache, rematerialize=True)


def configured(ctx: ParallelContext, cache: str, policy: str) -> StepCosts | None:
    costs = {"slot_s": 1.0, "copy_s": 1.0, "hidden_s": 0.125}
    return costs_of(ctx, cache, policy=policy, costs=costs)


@pytest.mark.parametrize("policy", ["fssdp", "expert_parallel"])
def test_it_is_not_measured_where_it_is_configured_or_of_no_use(policy, tmp_path):
    for costs in run_ranks(configured, 2, str(tmp_path), policy):
        assert (costs is None) == (policy == "expert_parallel")
        assert costs is None or costs.hidden_gather_s == 0.125
    assert kept(tmp_path) == []
