"""Which steps of a run are recorded, and how much of them."""

from __future__ import annotations

from pydantic import Field

from hecate.config import Config

WARM_UP = 3


class ProfileConfig(Config):
    """``hecate train --profile`` sets ``enabled`` and leaves the rest as it is here.

    ``first_step``: the first one recorded, counted from 1 as the log counts; 0 stands for the
    fourth after the start. ``ranks``: whose traces are kept, all where none are named. ``shapes``,
    ``memory`` and ``stacks`` are ``torch.profiler``'s; each makes the recorded steps slower.
    """

    enabled: bool = False
    first_step: int = Field(default=0, ge=0)
    steps: int = Field(default=3, ge=1)
    ranks: tuple[int, ...] = ()
    shapes: bool = False
    memory: bool = False
    stacks: bool = False

    def window(self, start: int) -> range:
        """The steps to record, numbered from 0, of a run that goes on after ``start`` of them."""
        first = self.first_step - 1 if self.first_step else start + WARM_UP
        return range(first, first + self.steps)
