"""Memory readings of the process."""

import mmap
import subprocess
import sys

import torch

from hecate.train.memory import memory_values, peak_resident_bytes, resident_bytes

_MIB = 2**20

_PEAK_OF_A_SMALL_CHILD = """
from hecate.train.memory import peak_resident_bytes
print(peak_resident_bytes())
"""


def test_resident_memory_follows_what_is_allocated_and_the_peak_stays():
    before = resident_bytes()
    # Straight from the system: an allocator may hand out pages that are resident already.
    with mmap.mmap(-1, 64 * _MIB) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        held = resident_bytes()
        assert 60 * _MIB < held - before < 80 * _MIB
        assert peak_resident_bytes() >= held
    assert resident_bytes() < held - 60 * _MIB


def test_the_peak_is_the_process_s_own_not_its_parent_s():
    block = torch.ones(512 * _MIB, dtype=torch.uint8)
    child = subprocess.run(
        [sys.executable, "-c", _PEAK_OF_A_SMALL_CHILD], capture_output=True, text=True, check=True
    )
    assert block.numel() == 512 * _MIB
    assert int(child.stdout) < 512 * _MIB < peak_resident_bytes()


def test_values_without_a_gpu_are_the_host_s():
    values = memory_values(torch.device("cpu"))
    assert set(values) == {"memory/resident_bytes", "memory/peak_resident_bytes"}
    assert values["memory/peak_resident_bytes"] >= values["memory/resident_bytes"] > 0
