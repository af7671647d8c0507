"""metrics.jsonl as the run's own sink writes it, put together from parts, and damaged."""

import json
import math

import pytest
from run_folders import logged, write_metrics

from hecate.errors import StorageError
from hecate.report.metrics import expert_slots, read_metrics


def write_lines(path, *records, end="\n"):
    path.write_text("\n".join(json.dumps(record) for record in records) + end)


def test_what_the_sink_writes_is_read(tmp_path):
    write_metrics(tmp_path, range(10, 31, 10))
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert [line.step for line in metrics.training] == [10, 20, 30]
    first = metrics.training[0]
    assert first.time_s == 1.8e9 + 8
    assert first.values["loss"] == 6.0 and first.values["tokens_per_s"] == 1010
    assert first.layers["load/ranks_max_over_mean"].tolist() == pytest.approx([1.5, 1.6, 1.7, 1.8])
    assert first.phases() == {"forward": 2.0, "all_to_all": 1.0, "backward": 4.0}
    assert "load/tokens_per_expert" not in {*first.values, *first.layers}
    assert metrics.damage.repeated == metrics.damage.unreadable == 0 and not metrics.damage.cut


def test_slots_of_experts_are_read_where_they_lie(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_metrics(tmp_path, range(10, 31, 10), layers=2, experts=3)
    second = read_metrics(path).training[1]
    assert [slots.tolist() for slots in expert_slots(path, second.offset)] == [[20, 21, 22]] * 2


@pytest.mark.parametrize("table", [[], [[]], [[1], []], "many", None, 5])
def test_a_table_of_another_shape_hides_nothing_behind_it(tmp_path, table):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, {"step": 1, "load/tokens_per_expert": table, "z": [1.0], "loss": 2.0})
    (line,) = read_metrics(path).training
    assert line.values == {"loss": 2.0} and line.layers["z"].tolist() == [1.0]


def test_a_number_that_was_not_finite_is_not_a_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, {"step": 1, "loss": None, "load/x": [1.0, None]})
    (line,) = read_metrics(path).training
    assert math.isnan(line.values["loss"]) and math.isnan(line.layers["load/x"][1])
    assert math.isnan(line.time_s)


def test_evaluations_are_apart(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(
        path, {"step": 5, "loss": 3.0}, {"step": 5, "eval/loss": 2.0}, {"step": 9, "loss": 1.0}
    )
    metrics = read_metrics(path)
    assert [(line.step, evaluated) for line, evaluated in metrics.in_order()] == [
        (5, False),
        (5, True),
        (9, False),
    ]


def test_steps_that_were_run_again_count_once(tmp_path):
    """A file that was not cut: 30 and 40 were trained, then again from 20."""
    path = tmp_path / "metrics.jsonl"
    first = [{"step": s, "loss": 1.0} for s in (10, 20, 30, 40)]
    again = [{"step": s, "loss": 2.0} for s in (30, 40, 50)]
    write_lines(
        path, *first, {"step": 40, "eval/loss": 9.0}, *again, {"step": 50, "eval/loss": 3.0}
    )
    metrics = read_metrics(path)
    assert [(line.step, line.values["loss"]) for line in metrics.training] == [
        (10, 1),
        (20, 1),
        (30, 2),
        (40, 2),
        (50, 2),
    ]
    assert [line.step for line in metrics.evaluations] == [50]
    assert metrics.damage.repeated == 2 and metrics.damage.back_to == (30,)


def test_the_sink_itself_leaves_nothing_to_repeat(tmp_path):
    write_metrics(tmp_path, range(10, 51, 10))
    write_metrics(tmp_path, range(30, 61, 10), resumed=20)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert [line.step for line in metrics.training] == [10, 20, 30, 40, 50, 60]
    assert metrics.damage.repeated == 0


@pytest.mark.parametrize("cut", [1, 5, 300])
def test_a_line_cut_by_a_kill_is_left_out(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    write_metrics(tmp_path, range(10, 31, 10))
    path.write_bytes(path.read_bytes()[:-cut])
    metrics = read_metrics(path)
    assert metrics.damage.cut and [line.step for line in metrics.training] == [10, 20]


def test_numbers_too_large_to_be_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        f'{{"step":1,"loss":1{"0" * 400},"lr":Infinity,"load/x":[1{"0" * 400}]}}\n'
        f'{{"step":1{"0" * 20},"loss":1}}\n{"[" * 100_000}\n'
    )
    metrics = read_metrics(path)
    (line,) = metrics.training
    assert math.isnan(line.values["loss"]) and math.isnan(line.values["lr"])
    assert math.isnan(line.layers["load/x"][0]) and metrics.damage.unreadable == 2


def test_lines_that_are_none_are_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps({"step": 1, "time_s": 1.0} | logged(1))
    bad = ["\0\0", "[1]", '{"step": "two"}', '{"step": true}', '{"step": -1}', "", "\xff{"]
    path.write_bytes("\n".join([*bad, whole, ""]).encode("latin-1"))
    metrics = read_metrics(path)
    assert metrics.damage.unreadable == len(bad) and [x.step for x in metrics.training] == [1]


def test_there_may_be_no_file(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl").training == ()


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match="cannot read"):
        read_metrics(tmp_path / "metrics.jsonl")
