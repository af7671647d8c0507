"""Freed memory stays: counted in page faults of a process of its own."""

import platform
import subprocess
import sys

import pytest

from hecate.train.host_memory import FEWEST_STEPS, SETTLING_STEPS, FreedMemory

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


def _given_back_after(sizes: list[int]) -> list[int]:
    """The steps after which memory was given back, where the process has ``sizes`` in turn."""
    step = 0
    given: list[int] = []
    reads = iter(sizes)
    freed = FreedMemory(lambda: next(reads), lambda: given.append(step))
    while step < len(sizes) + SETTLING_STEPS - 1:
        step += 1
        freed.after_step()
    return given


def test_memory_is_given_back_once_a_process_has_grown_beyond_a_step():
    flat, grown = [1000] * 40, [1000] * 20 + [1051] * 30
    assert _given_back_after(flat) == []
    assert _given_back_after([1000] * 20 + [1049] * 20) == []
    assert _given_back_after(grown) == [21 + SETTLING_STEPS - 1], "the step after sets a new level"


def test_a_process_that_needs_more_at_every_turn_is_left_alone_for_a_while():
    growing = [1000 + 100 * turn for turn in range(40)]
    steps = _given_back_after(growing)
    gaps = [after - before for before, after in zip(steps, steps[1:], strict=False)]
    assert steps[0] == FEWEST_STEPS
    assert gaps and all(gap >= FEWEST_STEPS - SETTLING_STEPS for gap in gaps)
