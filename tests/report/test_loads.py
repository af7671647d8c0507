"""loads.jsonl as the run's own recorder writes it, and damaged."""

import json

from run_folders import write_loads

from hecate.report.loads import read_loads, slots_of_step


def test_what_the_recorder_writes_is_found(tmp_path):
    path = tmp_path / "loads.jsonl"
    write_loads(tmp_path, range(3), layers=2, experts=4, ranks=3)
    loads = read_loads(path)
    assert loads.steps.tolist() == [1, 2, 3] and loads.begun == 0
    (start,) = loads.starts
    assert (start.step, start.num_ranks, start.num_nodes) == (0, 3, 1)
    # Two micro-batches of three sources, five slots each.
    slots = slots_of_step(path, int(loads.offsets[1]))
    assert [one.tolist() for one in slots] == [[0, 30, 30, 30]] * 2


def test_a_run_that_was_taken_up(tmp_path):
    write_loads(tmp_path, range(5))
    write_loads(tmp_path, range(3, 6), ranks=4)
    loads = read_loads(tmp_path / "loads.jsonl")
    assert loads.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert [(start.step, start.num_ranks) for start in loads.starts] == [(0, 2), (3, 4)]
    assert loads.damage.repeated == 0


def test_a_run_that_kept_loads_only_from_some_step_on(tmp_path):
    write_loads(tmp_path, range(7, 9))
    loads = read_loads(tmp_path / "loads.jsonl")
    assert loads.begun == 7 and loads.steps.tolist() == [8, 9]


def test_steps_that_were_run_again_count_once(tmp_path):
    path = tmp_path / "loads.jsonl"
    write_loads(tmp_path, range(4))
    before = path.read_text()
    path.unlink()
    write_loads(tmp_path, range(2, 5), experts=6)
    path.write_text(before + path.read_text())
    loads = read_loads(path)
    assert loads.steps.tolist() == [1, 2, 3, 4, 5]
    assert len(slots_of_step(path, int(loads.offsets[2]))[0]) == 6
    assert loads.damage.repeated == 2 and loads.damage.back_to == (3,)


def test_what_is_damaged_is_passed_over(tmp_path):
    path = tmp_path / "loads.jsonl"
    write_loads(tmp_path, range(3))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1], "rubbish\n", lines[2], lines[3][:-7]]))
    loads = read_loads(path)
    assert loads.steps.tolist() == [1, 2]
    assert loads.damage.cut and loads.damage.unreadable == 1


def test_spaces_in_a_line_change_nothing(tmp_path):
    path = tmp_path / "loads.jsonl"
    path.write_text(json.dumps({"time_s": 0, "step": 4, "slots": [[[[1, 2]]]]}, indent=None) + "\n")
    loads = read_loads(path)
    assert loads.steps.tolist() == [4] and loads.begun == 3
    assert slots_of_step(path, 0)[0].tolist() == [1, 2]


def test_slots_that_are_none(tmp_path):
    path = tmp_path / "loads.jsonl"
    path.write_text(
        '{"step":1,"slots":[[1]]}\n{"step":2,"slots":[[["a"]]]}\n{"step":3,"slots":[]}\n'
    )
    loads = read_loads(path)
    assert [slots_of_step(path, int(offset)) for offset in loads.offsets] == [[], [], []]


def test_there_may_be_no_file(tmp_path):
    assert len(read_loads(tmp_path / "loads.jsonl").steps) == 0
