"""How far a save has come. Pure.

Each stage is reached on a rank once it did what the stage says; a crash there leaves what the
stages so far have made. ``PUBLISHED`` is where the new checkpoint begins to count, in one rename.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum


class Stage(Enum):
    """The stages of a save, in order; those of rank 0 alone are told there alone."""

    STAGED = "the state is copied"
    FOLDER = "the unfinished folder is there"
    TENSOR = "a tensor comes next in this rank's file"
    FILES = "the files of all ranks are on the disk"
    RECORD = "meta.json is on the disk (rank 0)"
    PUBLISHED = "the folder has its name (rank 0)"
    OUTDATED = "an old checkpoint lost its name, and is still there (rank 0)"
    DONE = "nothing is left to do"


Reached = Callable[[Stage], None]


def unnoticed(stage: Stage) -> None:
    """Takes no notice of a stage."""
