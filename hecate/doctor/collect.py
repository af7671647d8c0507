"""Look at everything that decides what can run here."""

from __future__ import annotations

from pathlib import Path

from hecate.doctor import hardware, network, software, speed
from hecate.doctor.report import Report


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
