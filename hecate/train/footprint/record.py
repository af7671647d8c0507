"""What a run's memory should be and what it was: said at its start and end, kept in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from hecate.errors import ModelError
from hecate.files import write_text
from hecate.mesh import ParallelContext, naming, sum_over
from hecate.train.config import RunConfig
from hecate.train.footprint.estimate import estimate
from hecate.train.footprint.parts import Footprint
from hecate.train.footprint.table import gib, line
from hecate.train.memory import memory_values

FILE = "memory.json"


@dataclass(frozen=True)
class MemoryRecord:
    """The memory of a run over all its ranks; ``process_bytes``: what the fullest of them held
    beside the model before it was built."""

    config: RunConfig
    ctx: ParallelContext
    vocab_size: int
    process_bytes: int

    @classmethod
    def before_training(
        cls, config: RunConfig, ctx: ParallelContext, *, vocab_size: int, process_bytes: int
    ) -> MemoryRecord:
        """Collective. ``process_bytes``: what this rank holds beside the model."""
        fullest = int(max(_of_ranks(ctx, process_bytes)))
        return cls(config, ctx, vocab_size, fullest)

    @cached_property
    def estimated(self) -> Footprint | str:
        """Of the fullest rank; made when it is asked for, since it takes a while.

        Where the family does what shapes alone cannot, what that is.
        """
        try:
            return estimate(
                self.config,
                world_size=self.ctx.world_size,
                vocab_size=self.vocab_size,
                device_type=self.ctx.device.type,
                process_bytes=self.process_bytes,
            )
        except ModelError as error:
            return error.got

    def announce(self, say: Callable[[str], object]) -> None:
        if self.ctx.rank:
            return
        if isinstance(self.estimated, str):
            say(f"memory of a rank: not estimated ({self.estimated})")
        else:
            say(f"memory of a rank, estimated: {line(self.estimated)}")

    def conclude(self, folder: Path, say: Callable[[str], object]) -> None:
        """Say what the fullest rank took and keep it in the run's folder; collective."""
        values = memory_values(self.ctx.device)
        peak = values.get("memory/peak_device_bytes", values["memory/peak_resident_bytes"])
        peaks = _of_ranks(self.ctx, peak)
        if self.ctx.rank:
            return
        worst = max(range(len(peaks)), key=peaks.__getitem__)
        told = f"memory of a rank, measured: at most {gib(peaks[worst])}, on rank {worst}"
        document: dict[str, object] = {"device": self.ctx.device.type, "peak_bytes": peaks}
        if not isinstance(self.estimated, str):
            ratio = peaks[worst] / self.estimated.total
            told += f"; {ratio:.2f} of the estimate"
            document |= {
                "estimated_bytes": self.estimated.total,
                "parts": dict(self.estimated.items()),
                "measured_over_estimated": ratio,
            }
        say(told)
        write_text(folder / FILE, json.dumps(document, indent=1) + "\n")


def _of_ranks(ctx: ParallelContext, value: float) -> list[float]:
    values = torch.zeros(ctx.world_size, dtype=torch.float64)
    values[ctx.rank] = value
    with naming("the memory of all ranks", ctx.rank):
        found: list[float] = sum_over(ctx.groups.control, values).tolist()
    return found
