"""Which transport carries copies: the one that is named, or the same one on all ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from ranks import run_ranks

from collectives import TRANSPORTS, Change, Placement
from hecate.fssdp.channels import open_channels
from hecate.mesh import ParallelContext

CHANGE = Change(Placement.even(4, 2), Placement(((0, 1), (0,), (1,), (1,)), 2), 1 << 20)


def picked(ctx: ParallelContext, name: str, folder: Path, nodes: tuple[int, ...]) -> list[str]:
    channels = open_channels(replace(ctx, node_of_rank=nodes), name, folder)
    gathers, reductions, topology = channels
    assert topology.node_of_rank == nodes
    assert gathers.group is ctx.groups.gather and reductions.group is ctx.groups.reduce
    transports = [channel.pick([CHANGE]) for channel in (gathers, reductions)]
    assert transports[0].resources is not transports[1].resources  # two groups: never shared
    return [transport.name for transport in transports]


@pytest.mark.parametrize("name", sorted(TRANSPORTS))
def test_a_transport_by_name_carries_everything(name, tmp_path):
    assert run_ranks(picked, 2, name, tmp_path, (0, 0)) == [[name, name]] * 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nodes", [(0, 0), (0, 1)])
def test_auto_picks_alike_on_all_ranks_and_again_in_the_next_run(nodes, tmp_path):
    first = run_ranks(picked, 2, "auto", tmp_path, nodes)
    assert first[0] == first[1]
    (file,) = tmp_path.iterdir()
    written = file.read_text()
    assert run_ranks(picked, 2, "auto", tmp_path, nodes) == first
    assert file.read_text() == written


def test_one_rank_measures_nothing(tmp_path):
    change = run_ranks(alone, 1, tmp_path)
    assert change == ["p2p"]
    assert list(tmp_path.iterdir()) == []


def alone(ctx: ParallelContext, folder: Path) -> str:
    gathers, _, _ = open_channels(ctx, "auto", folder)
    return gathers.pick([Change(Placement.even(2, 1), Placement.even(2, 1), 8)]).name
