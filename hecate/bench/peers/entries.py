"""One line of the table of contenders."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from hecate.bench.peers.protocol import Contender


@dataclass(frozen=True)
class Entry:
    """A contender by its title; ``requires`` are packages that may be missing."""

    title: str
    train: Contender
    requires: tuple[str, ...] = ()

    def missing(self) -> str:
        """What is not installed and how to get it; "" where nothing is missing."""
        absent = [name for name in self.requires if importlib.util.find_spec(name) is None]
        if not absent:
            return ""
        return f"{', '.join(absent)} not installed: pip install 'hecate[bench]'"
