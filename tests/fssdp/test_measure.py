"""Costs are measured once for all ranks, remembered, and overruled by the configuration."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from ranks import run_ranks
from toy_models import toy_config

from hecate.fssdp.config import CostsConfig
from hecate.fssdp.measure import step_costs
from hecate.mesh import ParallelContext
from hecate.models.build import meta_model
from hecate.models.families import find_moe_layers
from hecate.planner.copies import StepCosts


def costs_on_rank(ctx: ParallelContext, folder: Path, config: CostsConfig) -> StepCosts:
    model = meta_model(toy_config("qwen3_moe"))
    layer = find_moe_layers(model)[0]
    return step_costs(
        config,
        model.get_submodule(layer.name),
        layer,
        ctx,
        dtype=torch.float32,
        compute_dtype=torch.float32,
        folder=folder,
    )


def test_all_ranks_get_the_same_and_a_repeat_finds_it_again(tmp_path):
    first = run_ranks(costs_on_rank, 3, tmp_path, CostsConfig())
    assert len(set(first)) == 1
    assert first[0].slot_s > 0 and first[0].copy_s > 0
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == [first[0].slot_s, first[0].copy_s]
    file.write_text("[0.25, 0.5]")
    for again in run_ranks(costs_on_rank, 3, tmp_path, CostsConfig(slots_per_rank=7)):
        assert again == StepCosts(slot_s=0.25, copy_s=0.5, free_copies=0, slots_per_rank=7)


def test_what_is_configured_is_not_measured(tmp_path):
    config = CostsConfig(slot_s=1.0, copy_s=2.0, free_copies=3)
    for costs in run_ranks(costs_on_rank, 2, tmp_path, config):
        assert (costs.slot_s, costs.copy_s, costs.free_copies) == (1.0, 2.0, 3)
    assert list(tmp_path.iterdir()) == []
    half = CostsConfig(slot_s=1.0)
    for costs in run_ranks(costs_on_rank, 2, tmp_path, half):
        assert costs.slot_s == 1.0 and costs.copy_s > 0


def test_a_damaged_file_is_measured_again_on_every_rank(tmp_path):
    run_ranks(costs_on_rank, 2, tmp_path, CostsConfig())
    (file,) = tmp_path.iterdir()
    for damaged in ("", "[0.25", "[0.25]", "{}"):
        file.write_text(damaged)
        first, second = run_ranks(costs_on_rank, 2, tmp_path, CostsConfig())
        assert first == second
        assert json.loads(file.read_text()) == [first.slot_s, first.copy_s]
