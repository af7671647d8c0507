"""Freed memory stays: counted in page faults of a process of its own."""

import platform
import subprocess
import sys

import pytest

_STEPS = """
import resource, sys
import torch
from hecate.train.host_memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    tensors = [torch.empty(16 << 20).fill_(1.0) for _ in range(3)]  # 64 MiB each

for _ in range(8):  # until the heap has room for all
    step()
before = faults()
for _ in range(4):
    step()
print(faults() - before)
"""


def _faults_of_four_steps(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _STEPS, mode], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or sys.platform != "linux", reason="mallopt is glibc's"
)
def test_large_tensors_are_not_faulted_in_again():
    pages = 4 * 3 * (64 << 20) // 4096
    kept = _faults_of_four_steps("keep")
    assert kept < pages // 100
    # Huge pages, where the kernel gives them on its own, leave a 512th of the faults.
    assert _faults_of_four_steps("return") > max(kept, pages // 600)
