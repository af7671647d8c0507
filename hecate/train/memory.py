"""How much memory this process holds, on the host and on its GPU."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Host memory that the process occupies now; its peak where the system tells no more."""
    return _status_bytes("VmRSS:") or peak_resident_bytes()


def peak_resident_bytes() -> int:
    """The most host memory that the process has occupied.

    Read from ``/proc`` where there is one: ``getrusage`` inherits the peak of the program that
    started this one.
    """
    peak = _status_bytes("VmHWM:")
    if peak:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(field: str) -> int:
    if not _STATUS.exists():
        return 0
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def memory_values(device: torch.device) -> dict[str, float]:
    """The readings under the names that metrics have; GPU ones only on a GPU."""
    values: dict[str, float] = {
        "memory/resident_bytes": resident_bytes(),
        "memory/peak_resident_bytes": peak_resident_bytes(),
    }
    if device.type == "cuda":
        values["memory/device_bytes"] = torch.cuda.memory_allocated(device)
        values["memory/peak_device_bytes"] = torch.cuda.max_memory_allocated(device)
    return values
