"""Calibration: lines through measured times, files of earlier runs, and ranks that agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from collectives import (
    TRANSPORTS,
    Calibration,
    Change,
    Link,
    Placement,
    TransportChooser,
    TransportCost,
    calibrate,
    calibration,
    measure,
)
from hecate.mesh import ParallelContext

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("xs", "ys", "line"),
    [
        pytest.param([1, 3], [5, 9], (3, 2), id="through two points"),
        pytest.param([0, 1, 2], [1, 1, 4], (0.5, 1.5), id="least squares"),
        pytest.param([1, 2], [1, 4], (0, 3), id="nothing takes less than no time"),
        pytest.param([1, 2], [4, 1], (2.25, 1 / 6), id="noise does not make a slope negative"),
    ],
)
def test_a_line_has_no_negative_terms(xs, ys, line):
    assert calibration._line(xs, ys) == pytest.approx(line, rel=1e-9)


def calibrate_on_rank(ctx: ParallelContext, file: str, machine: str) -> Calibration:
    nodes = [rank // 2 for rank in range(ctx.world_size)]
    return calibrate(Path(file), ctx.groups.control, ctx.rank, nodes, machine=machine, device=CPU)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_all_ranks_end_with_the_same_numbers_and_the_file_keeps_them(world_size, tmp_path):
    file = tmp_path / "folder" / "speeds.json"
    measured = run_ranks(calibrate_on_rank, world_size, str(file), "here")
    assert all(other == measured[0] for other in measured)
    assert sorted(measured[0].costs) == sorted(TRANSPORTS)
    assert run_ranks(calibrate_on_rank, world_size, str(file), "here") == measured
    speeds = [cost.bytes_per_s for cost in measured[0].costs.values()]
    if world_size > 1:  # a second for 10 MB is no machine of today
        assert 1e7 < min(speeds) and max(speeds) < 1e13
        assert 0 <= measured[0].inside.latency_s < 1


def written(file: Path, **changed) -> dict:
    """A file of round numbers for two ranks on one node."""
    text = {
        "machine": "here",
        "node_of_rank": [0, 0],
        "inside": {"bandwidth_bytes_per_s": 8.0, "latency_s": 0.1},
        "across": {"bandwidth_bytes_per_s": 4.0, "latency_s": 0.2},
        "costs": {
            name: {"launch_s": 0.3, "bytes_per_s": float(place), "copies": 2}
            for place, name in enumerate(sorted(TRANSPORTS), start=1)
        },
    } | changed
    file.write_text(json.dumps(text))
    return text


def test_a_file_of_an_earlier_run_is_believed_to_the_bit(tmp_path):
    written(tmp_path / "speeds.json")
    for found in run_ranks(calibrate_on_rank, 2, str(tmp_path / "speeds.json"), "here"):
        assert found.inside == Link(8.0, 0.1)
        assert found.across == Link(4.0, 0.2)
        assert found.costs["p2p"] == TransportCost(0.3, 4.0, 2)
        assert found.topology([0, 1]).across == Link(4.0, 0.2)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"machine": "there"}, id="another machine"),
        pytest.param({"node_of_rank": [0, 1]}, id="other nodes"),
        pytest.param({"costs": {}}, id="no costs"),
        pytest.param({"inside": {"bandwidth_bytes_per_s": -1, "latency_s": 0}}, id="no such link"),
    ],
)
def test_a_file_of_something_else_is_replaced(changed, tmp_path):
    file = tmp_path / "speeds.json"
    written(file, **changed)
    found, _ = run_ranks(calibrate_on_rank, 2, str(file), "here")
    assert found.across != Link(4.0, 0.2)
    assert json.loads(file.read_text())["costs"]["p2p"]["bytes_per_s"] == (
        found.costs["p2p"].bytes_per_s
    )


def test_a_damaged_file_is_replaced(tmp_path):
    file = tmp_path / "speeds.json"
    file.write_text('{"machine": "he')
    found = run_ranks(calibrate_on_rank, 1, str(file), "here")[0]
    assert json.loads(file.read_text())["inside"]["latency_s"] == found.inside.latency_s


def test_one_size_is_no_line():
    with pytest.raises(ValueError, match="expected two different ones"):
        measure(None, 0, [0], device=CPU, sizes_bytes=[64, 64])


def test_the_chooser_picks_by_cost_and_all_its_transports_share_resources():
    """Two ranks: a launch of a second against a byte of a second; 10 or 1 bytes travel."""
    costs = {"p2p": TransportCost(0.0, 1.0, 1), "all_to_all": TransportCost(5.0, 1000.0, 1)}
    chooser = TransportChooser(
        costs, Calibration(Link(1e9, 0), Link(1e9, 0), costs).topology([0, 0])
    )
    before, after = Placement.from_owners([0], 2), Placement(((0, 1),), 2)
    large = chooser.pick([Change(before, after, 10)])
    small = chooser.pick([Change(before, after, 1)])
    assert (large.name, small.name) == ("all_to_all", "p2p")
    assert large.resources is small.resources
