"""Traces written by hand, and what a profile has to say of them."""

from __future__ import annotations

from typing import Any

import pytest

from hecate.train.profile.phases import Label
from hecate.train.profile.summary import RankProfile, as_record, as_table, profile_of

MAIN, GLOO, WATCHER, STREAM, NCCL = 1, 2, 3, 7, 8


def event(name: str, start: float, end: float, thread: int = MAIN, **more: Any) -> dict[str, Any]:
    """A span of milliseconds."""
    category = more.pop("cat", "user_annotation" if "::" in name else "cpu_op")
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": 0,
        "tid": thread,
        "ts": 1e3 * start,
        "dur": 1e3 * (end - start),
        "args": {name.replace("_", " "): value for name, value in more.items()},
    }


NODE = "autograd::engine::evaluate_function: AddmmBackward0"

ON_CPU = [
    {"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "ts": 0.0},
    event("aten::mm", -5, -1),  # before the step: counts as nothing
    event("hecate::step 4", 0, 100),
    event("hecate::forward", 0, 40),
    event("hecate::layer 0", 5, 40),
    # a gather of 20 ms: 2 while it is launched, 8 under attention, 10 while its copies are awaited
    event("hecate::launch sparse gather", 5, 7),
    event("c10d::recv_", 5, 6),
    event("gloo:recv", 5.5, 25),  # ends where somebody waits: what the watcher saw is better
    event("hecate::carry sparse gather of layers.0.mlp.experts", 5, 25, WATCHER),
    event("aten::copy_", 24, 25, WATCHER),  # of the collective itself: no computation
    event("hecate::attention", 7, 15),
    event("aten::addmm", 7, 15, Sequence_number=11),
    event("hecate::gather", 15, 25),
    event("hecate::experts", 25, 35),
    event("aten::mm", 25, 35, Sequence_number=12),
    event("hecate::backward", 40, 80),
    event(NODE, 42, 52, Sequence_number=12),
    event("hecate::experts", 44, 50),
    event(NODE, 52, 70, Sequence_number=11),
    event("aten::mm", 52, 62),
    event("hecate::optimizer", 80, 95),
    event("c10d::allreduce_", 81, 82),
    event("gloo:all_reduce", 83, 85, GLOO),  # begins when a thread takes it up
]


def test_phases_of_a_step_on_a_cpu() -> None:
    profile = profile_of(3, ON_CPU)
    assert (profile.rank, profile.steps, profile.step_s) == (3, 1, pytest.approx(0.1))
    assert {label: round(1e3 * s, 6) for label, s in profile.seconds.items()} == {
        Label("forward"): 5,
        Label("layer", 0): 5,
        Label("launch sparse gather", 0): 2,
        Label("attention", 0): 8,
        Label("gather", 0): 10,
        Label("experts", 0): 10,
        Label("backward", backward=True): 2 + 10,
        # a node of the experts, and its own phase inside
        Label("experts", 0, backward=True): 10,
        Label("attention", 0, backward=True): 18,
        Label("optimizer"): 15,
        Label("step"): 5,
    }
    assert sum(profile.seconds.values()) == pytest.approx(profile.step_s)


def test_overlap_on_a_cpu() -> None:
    overlaps = profile_of(0, ON_CPU).overlaps
    assert list(overlaps) == ["sparse gather", "sums and agreements"]
    gather, sums = overlaps.values()
    assert gather.launches == 1
    assert gather.under_way_s == pytest.approx(0.020)
    assert gather.hidden_s == pytest.approx(0.008) and gather.exposed_s == pytest.approx(0.012)
    assert gather.fraction == pytest.approx(0.4)
    assert sums.under_way_s == pytest.approx(0.004) and sums.fraction == 0


def launched(name: str, at: float, start: float, end: float, number: int, stream: int) -> list[Any]:
    return [
        event("cudaLaunchKernel", at, at + 0.1, cat="cuda_runtime", correlation=number),
        event(name, start, end, stream, cat="kernel", correlation=number),
    ]


ON_CUDA = [
    event("hecate::step 4", 0, 30),
    event("hecate::layer 0", 0, 20),
    event("hecate::launch sparse gather", 1, 2),
    *launched("ncclDevKernel_SendRecv", 1.5, 2, 12, 1, NCCL),
    event("hecate::attention", 2, 6),
    event("aten::mm", 2, 6),  # launches and is gone: on a GPU kernels compute, not operations
    *launched("sm80_gemm", 2.5, 4, 9, 2, STREAM),
    event("hecate::all_to_all", 6, 7),
    *launched("ncclDevKernel_SendRecv", 6.5, 12, 14, 3, NCCL),
    event("FSDP::all_gather (layers.1)", 7, 8),
    *launched("ncclDevKernel_AllGather", 7.5, 14, 18, 4, NCCL),
    event("hecate::experts", 8, 9),
    *launched("grouped_gemm", 8.5, 15, 25, 5, STREAM),
]


def test_overlap_on_a_gpu_is_that_of_kernels() -> None:
    overlaps = profile_of(0, ON_CUDA).overlaps
    assert {kind: (1e3 * o.under_way_s, 1e3 * o.hidden_s) for kind, o in overlaps.items()} == {
        "sparse gather": (pytest.approx(10), pytest.approx(5)),
        "token exchange": (pytest.approx(2), pytest.approx(0)),
        "dense gather": (pytest.approx(4), pytest.approx(3)),
    }


@pytest.mark.parametrize(
    ("asked", "done", "kind"),
    [
        ("c10d::_allgather_base_", "gloo:all_gather", "dense gather"),
        ("c10d::allreduce_", "gloo:all_reduce", "dense reduce"),
        ("c10d::_reduce_scatter_base_", "gloo:all_reduce", "dense reduce"),
        ("c10d::broadcast_", "gloo:broadcast", "other"),
    ],
)
def test_collectives_of_other_backends_are_told_by_their_operation(asked, done, kind) -> None:
    events = [
        event("hecate::step 1", 0, 10),
        event("hecate::backward", 0, 10),
        event(asked, 1, 2),
        event(done, 3, 4, GLOO),
        event("gloo:all_to_all", 5, 6, GLOO),  # launched before the recording began
    ]
    ((found, overlap),) = profile_of(0, events).overlaps.items()
    assert found == kind and overlap.under_way_s == pytest.approx(0.003)


def test_a_table_holds_the_means_of_ranks_and_steps() -> None:
    # one rank has recorded the step above twice, the other one of 200 ms without communication
    twice = ON_CPU + [one | {"ts": one["ts"] + 1e6} for one in ON_CPU]
    idle = RankProfile(1, 1, 0.2, {Label("data"): 0.2}, {})
    record = as_record([profile_of(0, twice), idle], first_step=3)
    assert record["first_step"] == 4 and record["steps"] == 2
    first = record["ranks"][0]
    assert first["step_s"] == pytest.approx(0.1)
    assert first["phases"]["attention"]["layers"]["0"] == pytest.approx([0.008, 0.018])
    assert first["communication"]["sparse gather"]["launches"] == 1
    lines = as_table(record).splitlines()
    assert lines[0] == "profile of steps 4 to 5, 2 ranks: 150.0 ms a step"
    rows = {line[:24].strip(): line[24:].split() for line in lines[1:]}
    assert rows["data"] == ["100.00", "0.00", "66.7%"]
    assert rows["attention"] == ["4.00", "9.00", "8.7%"]
    assert rows["sparse gather"] == ["10.00", "4.00", "6.00", "40%"]


def test_a_trace_without_steps_says_so() -> None:
    profile = profile_of(0, [event("aten::mm", 0, 1)])
    assert profile.steps == 0 and not profile.overlaps
    assert as_table(as_record([], first_step=3)) == "no steps were recorded"
