"""Tables that are coloured in, by hand."""

import base64

import numpy as np
import pytest

from hecate.report import maps
from hecate.report.curves import Training
from hecate.report.maps import LOWEST, OCTAVES, coded, expert_maps, layer_maps
from hecate.report.records import Logged, Metrics, Start


def ratios(text):
    """What the page makes of the codes."""
    codes = np.frombuffer(base64.b64decode(text), dtype=np.uint8).astype(float)
    found = 2 ** (LOWEST + OCTAVES * (codes - 1) / 253)
    return np.where(codes == 0, 0, np.where(codes == 255, np.nan, found))


def test_a_code_is_right_to_within_2_percent():
    of = np.geomspace(2**-6, 2**8, 1000)
    assert ratios(base64.b64encode(coded(of).tobytes())) == pytest.approx(of, rel=0.02)
    assert coded(np.array([0.0, np.nan, 1e-9, 1e9])).tolist() == [0, 255, 1, 254]


def test_each_step_is_a_column_of_every_expert():
    tables = [[np.array([0.0, 1.0, 2.0])], [np.array([3.0, 3.0, 0.0])]]
    found = expert_maps(np.array([1, 2]), 0, tables.__getitem__, "loads.jsonl")
    assert found.edges == [0, 1, 2] and found.num_experts == [3]
    assert ratios(found.codes[0]) == pytest.approx([0, 1, 2, 1.5, 1.5, 0], rel=0.02)
    assert found.steps_of_column == found.read_of_column == 1


def test_layers_may_have_different_experts_and_steps_may_lack_some():
    tables = [[np.ones(2), np.ones(3)], [], [np.zeros(2), np.ones(3)]]
    found = expert_maps(np.array([1, 2, 3]), 0, tables.__getitem__, "")
    assert found.num_experts == [2, 3]
    assert np.isnan(ratios(found.codes[0])).tolist() == [False, False, True, True, True, True]
    assert np.isnan(ratios(found.codes[1])).tolist() == [False] * 3 + [True] * 3 + [False] * 3


def test_a_large_run_is_read_in_part_and_drawn_in_few_columns():
    read = []

    def table(place):
        read.append(place)
        return [np.ones(256)] * 61

    found = expert_maps(np.arange(1, 100_001), 0, table, "")
    columns = maps.MOST_CELLS // (61 * 256)
    assert len(found.edges) == columns + 1 == 52 and found.edges[-1] == 100_000
    assert found.read_of_column == 8 and found.steps_of_column == 1961
    assert len(read) == 1 + 8 * columns  # the first is looked at for its shape
    assert sum(map(len, found.codes)) < 1.1e6


def test_no_loads_no_maps():
    assert expert_maps(np.zeros(0, np.int64), 0, lambda place: [], "") is None
    assert expert_maps(np.array([1]), 0, lambda place: [], "") is None


def test_layers_before_and_after_and_what_is_by_step():
    lines = [
        Logged(
            step,
            0.0,
            {},
            {
                "load/ranks_max_over_mean": np.array([1.5, before]),
                "load/computed_max_over_mean": np.array([1.0, 1.25]),
                "load/straggler_wait_s": np.array([0.5, 0.0]),
                "router/entropy": np.array([1.0, 0.5]),
                "of/another_version": np.array([7.0, 8.0]),
            },
        )
        for step, before in ((5, 2.0), (10, 3.0))
    ]
    training = Training.of(Metrics(tuple(lines)), [Start(0)])
    found = layer_maps(training)
    assert found.edges == [0, 5, 10] and found.lines_of_column == 1
    rows = {each.key: each.rows for each in found.maps}
    assert rows["load/ranks_max_over_mean"] == [[1.5, 1.5], [2, 3]]
    assert rows["load/computed_max_over_mean"] == [[1, 1], [1.25, 1.25]]
    assert rows["load/straggler_wait_s"] == [[0.1, 0.1], [0, 0]]
    assert {each.key: (each.title, each.even) for each in found.maps[3:]} == {
        "router/entropy": ("Entropy of routing over the most there can be", 1.0),
        "of/another_version": ("of/another_version", 0.0),
    }
