"""What this machine can run, what is missing, and how to get it.

report.py     rows and how they look
software.py   versions of packages, the compiler
hardware.py   cores, memory, disks, GPUs
speed.py      which dtypes are fast here, measured
network.py    a process group of one rank, NCCL, Ray
"""

from __future__ import annotations

from pathlib import Path

from hecate.doctor import hardware, network, software, speed
from hecate.doctor.report import Report, Row, render

__all__ = ["Report", "Row", "collect", "render"]


def collect(folder: Path) -> Report:
    """Look at everything; takes a few seconds. ``folder`` is where runs would be written."""
    return Report(
        (
            *software.rows(),
            *hardware.rows(folder),
            *network.rows(),
            *speed.rows(),
        )
    )
