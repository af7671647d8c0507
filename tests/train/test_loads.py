"""loads.jsonl: a line a step, resumable, and refused by name where it is damaged."""

import json

import numpy as np
import pytest

from collectives.topology import Link, Topology
from hecate.errors import StorageError
from hecate.fssdp.config import ExpertsConfig
from hecate.planner.costs import StepCosts
from hecate.train.loads import MOST_NUMBERS, LoadsHeader, LoadsRecorder, read_loads


def header(step=0, ranks=2, experts=2):
    return LoadsHeader(
        step=step,
        owners=(tuple(e * ranks // experts for e in range(experts)),),
        window=np.full((1, 1, experts), 3, dtype=np.int64),
        gather_bytes=(10,),
        reduce_bytes=(20,),
        costs=StepCosts(1.0, 10, 20, launch_s=0.5, slots_per_rank=8),
        topology=Topology((0,) * ranks, inside=Link(1e9, 1e-6), across=Link(1e8, 0.0)),
        experts=ExpertsConfig(policy="swapping", swapping={"every": 7}),
    )


def routed(number, ranks=2, experts=2):
    """One micro-batch of one layer, whose numbers say which step it is."""
    return ((np.full((ranks, experts), number, dtype=np.int64),),)


def write(path, steps, resumed=0, **sizes):
    recorder = LoadsRecorder(path, header(resumed, **sizes))
    for step in steps:
        recorder.record(step, routed(step, **sizes))
    recorder.close()


def read(path):
    loads = read_loads(path)
    return [(each.step, int(each.routed[0][0][0, 0])) for each in loads.steps]


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "run" / "loads.jsonl", range(3))
    loads = read_loads(tmp_path / "run")
    (found,) = loads.headers
    assert not loads.cut and found.window.tolist() == header().window.tolist()
    for name in ("step", "owners", "gather_bytes", "reduce_bytes", "costs", "topology"):
        assert getattr(found, name) == getattr(header(), name)
    assert found.experts == header().experts and found.world_size == 2
    assert read(tmp_path / "run" / "loads.jsonl") == [(0, 0), (1, 1), (2, 2)]
    first_step = (tmp_path / "run" / "loads.jsonl").read_text().splitlines()[1]
    assert json.loads(first_step) == {"step": 1, "slots": [[[[0, 0], [0, 0]]]]}


def test_a_line_is_on_disk_as_soon_as_it_is_recorded(tmp_path):
    recorder = LoadsRecorder(tmp_path / "loads.jsonl", header())
    recorder.record(0, routed(5))
    assert read(tmp_path) == [(0, 5)]
    recorder.close()
    recorder.close()


def test_a_resumed_run_repeats_no_step(tmp_path):
    path = tmp_path / "loads.jsonl"
    write(path, range(5))
    for _ in range(2):  # the second time it takes the place of the first
        write(path, range(3, 6), resumed=3)
        assert [step for step, _ in read(path)] == [0, 1, 2, 3, 4, 5]
        assert [each.step for each in read_loads(path).headers] == [0, 3]
    write(path, range(2, 4), resumed=2)
    assert [step for step, _ in read(path)] == [0, 1, 2, 3]
    assert [each.step for each in read_loads(path).headers] == [0, 2]


def test_a_new_run_starts_the_file_anew(tmp_path):
    write(tmp_path / "loads.jsonl", range(5))
    write(tmp_path / "loads.jsonl", range(2))
    assert [step for step, _ in read(tmp_path)] == [0, 1]


@pytest.mark.parametrize("left", ["", "{}\n", "step"])
def test_a_file_that_does_not_reach_the_checkpoint_starts_anew(tmp_path, left):
    path = tmp_path / "loads.jsonl"
    path.write_text(left)
    write(path, range(3, 5), resumed=3)
    assert [step for step, _ in read(path)] == [3, 4]
    write(path, range(9, 10), resumed=9)
    assert [step for step, _ in read(path)] == [9]


def test_a_line_cut_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "loads.jsonl"
    write(path, range(3))
    whole = path.read_text()
    for cut in (whole[:-9], whole[:-1]):
        path.write_text(cut)
        loads = read_loads(path)
        assert loads.cut and [each.step for each in loads.steps] == [0, 1]
        write(path, range(2, 3), resumed=2)
        assert [step for step, _ in read(path)] == [0, 1, 2]


def test_many_numbers_are_summed_up(tmp_path):
    recorder = LoadsRecorder(tmp_path / "loads.jsonl", header(experts=4))
    wide = np.arange(MOST_NUMBERS, dtype=np.int64).reshape(-1, 4)
    recorder.record(0, ((wide,), (wide,)))
    recorder.close()
    (step,) = read_loads(tmp_path).steps
    ((counts_SE,),) = step.routed
    assert counts_SE.tolist() == (2 * wide.sum(0, keepdims=True)).tolist()


def damaged(path, line, change):
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = change(lines[line - 1])
    path.write_text("".join(lines))


@pytest.mark.parametrize(
    ("line", "change", "said"),
    [
        pytest.param(3, lambda text: text[: len(text) // 2] + "\n", "line 3", id="truncated"),
        pytest.param(3, lambda text: "", "step 3; expected 2", id="missing"),
        pytest.param(2, lambda text: text.replace("]]", "],[1]]", 1), "line 2", id="ragged"),
        pytest.param(2, lambda text: text.replace("0,0", "0"), "line 2", id="few"),
        pytest.param(2, lambda text: '{"step":1,"slots":[]}\n', "no micro-batch", id="empty"),
        pytest.param(2, lambda text: "[1]\n", "line 2", id="no-object"),
        pytest.param(1, lambda text: "", "before any header", id="no-header"),
        pytest.param(1, lambda text: text.replace('"owners"', '"own"'), "owners", id="key"),
        pytest.param(1, lambda text: text.replace("swapping", "swaping", 1), "kind", id="policy"),
        pytest.param(1, lambda text: text.replace('"costs":{', '"costs":{"x":1,'), "x", id="cost"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, change, said):
    path = tmp_path / "loads.jsonl"
    write(path, range(3))
    damaged(path, line, change)
    with pytest.raises(StorageError, match="cannot be read") as raised:
        read_loads(tmp_path)
    assert said in str(raised.value)


@pytest.mark.parametrize("there", ["nothing", "a header alone", "an empty folder", "bytes"])
def test_loads_that_are_not_there_are_asked_for(tmp_path, there):
    path = tmp_path / "run"
    if there == "a header alone":
        write(path, [])
    elif there == "an empty folder":
        path.mkdir()
    elif there == "bytes":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StorageError, match="no loads|no step yet") as raised:
        read_loads(path)
    assert raised.value.fix and raised.value.got and raised.value.expected
