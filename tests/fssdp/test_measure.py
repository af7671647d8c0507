"""Costs are measured once for all ranks, remembered, and overruled by the configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from toy_models import toy_config

from hecate.fssdp.config import CostsConfig
from hecate.fssdp.measure import Costs, measured_costs
from hecate.mesh import ParallelContext
from hecate.models.build import meta_model
from hecate.models.families import find_moe_layers
from hecate.planner.costs import NO_LIMIT

NAMES = [
    "slot_s",
    "inside_copy_s",
    "across_copy_s",
    "exposed_share",
    "inside_row_s",
    "across_row_s",
    "both_ways",
]


def costs_on_rank(
    ctx: ParallelContext, folder: Path, config: CostsConfig, nodes: tuple[int, ...] = ()
) -> Costs:
    model = meta_model(toy_config("qwen3_moe"))
    layer = find_moe_layers(model)[0]
    return measured_costs(
        config,
        model.get_submodule(layer.name),
        layer,
        replace(ctx, node_of_rank=nodes) if nodes else ctx,
        dtype=torch.float32,
        compute_dtype=torch.bfloat16,
        folder=folder,
    )


def test_all_ranks_get_the_same_and_a_repeat_finds_it_again(tmp_path):
    first = run_ranks(costs_on_rank, 3, tmp_path, CostsConfig())
    assert len(set(first)) == 1
    step, topology = first[0].step, first[0].topology
    assert step.slot_s > 0 and -2 <= step.overlap <= 1
    assert step.row_s == step.row_across_s > 0 and 1 <= step.both_ways <= 2
    assert step.reduce_bytes == 2 * step.gather_bytes
    assert step.slots_per_rank == NO_LIMIT
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    assert list(kept) == NAMES
    moved_bytes = step.gather_bytes + step.reduce_bytes
    bandwidth = topology.inside.bandwidth_bytes_per_s
    assert moved_bytes / bandwidth == pytest.approx(kept["inside_copy_s"])
    assert topology.across == topology.inside  # all ranks share a node
    written = [0.25, 0.5, 2.0, 0.75, 0.125, 0.375, 1.5]
    file.write_text(json.dumps(dict(zip(NAMES, written, strict=True))))
    for again in run_ranks(costs_on_rank, 3, tmp_path, CostsConfig(slots_per_rank=7)):
        assert (again.step.slot_s, again.step.overlap, again.step.slots_per_rank) == (0.25, 0.25, 7)
        assert again.topology.inside.bandwidth_bytes_per_s == moved_bytes / 0.5
        assert again.topology.across.bandwidth_bytes_per_s == moved_bytes / 2.0
        rows = (again.step.row_s, again.step.row_across_s, again.step.both_ways)
        assert rows == (0.125, 0.375, 1.5)


def test_each_class_of_link_is_measured_between_ranks_that_have_it(tmp_path):
    outcomes = run_ranks(costs_on_rank, 3, tmp_path, CostsConfig(), (0, 1, 1))
    assert len(set(outcomes)) == 1
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    assert 0 < kept["inside_copy_s"] != kept["across_copy_s"] > 0
    assert outcomes[0].topology.node_of_rank == (0, 1, 1)


def test_what_is_configured_is_not_measured(tmp_path):
    config = CostsConfig(slot_s=1.0, copy_s=2.0, hidden_s=0.5)
    for costs in run_ranks(costs_on_rank, 2, tmp_path, config):
        assert (costs.step.slot_s, costs.step.overlap) == (1.0, 1.0)
        assert (costs.step.hidden_gather_s, costs.step.hidden_reduce_s) == (0.5, 1.0)
        assert (costs.step.row_s, costs.step.row_across_s, costs.step.both_ways) == (0.0, 0.0, 1.0)
        assert costs.step.late_copy_s(costs.topology) == pytest.approx(2.0)
    assert list(tmp_path.iterdir()) == []
    for costs in run_ranks(costs_on_rank, 2, tmp_path, CostsConfig(slot_s=1.0)):
        assert costs.step.slot_s == 1.0 and costs.step.late_copy_s(costs.topology) > 0


def test_one_rank_has_nobody_to_send_to(tmp_path):
    (costs,) = run_ranks(costs_on_rank, 1, tmp_path, CostsConfig())
    assert costs.step.late_copy_s(costs.topology) < 1e-6
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_measured_again_on_every_rank(tmp_path):
    run_ranks(costs_on_rank, 2, tmp_path, CostsConfig())
    (file,) = tmp_path.iterdir()
    for damaged in ("", '{"slot_s": 1', "[0.25, 1, 1, 1]", '{"slot_s": 1.0}'):
        file.write_text(damaged)
        first, second = run_ranks(costs_on_rank, 2, tmp_path, CostsConfig())
        assert first == second
        assert list(json.loads(file.read_text())) == NAMES
