"""What a transport does: carry out a schedule of transfers over a process group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.distributed as dist

from collectives.schedule import Change, Schedule, Transfer
from collectives.transports.resources import LaunchResources

# Chunk id -> this rank's contiguous 1-D row [C] of it.
Rows = Mapping[int, torch.Tensor]

# Works to wait for before the iterator may be advanced; its end is the end of the collective.
Steps = Iterator[Sequence[dist.Work]]


@dataclass(frozen=True)
class Launch:
    """One collective as one rank sees it: ``rows[layer][chunk]``, and what becomes of them.

    ``rank`` is that of this process in ``group``, and so are the ranks of ``schedule``.
    """

    rows: Sequence[Rows]
    changes: Sequence[Change]
    schedule: Schedule
    group: dist.ProcessGroup
    rank: int

    def row(self, item: Transfer) -> torch.Tensor:
        return self.rows[item.layer][item.chunk]

    @cached_property
    def device(self) -> torch.device:
        """Where rows are; for a rank that has none, where the group's other ranks have them."""
        for rows in self.rows:
            for row in rows.values():
                return row.device
        if "nccl" in str(dist.get_backend_config(self.group)):
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")


class Transport(Protocol):
    """Carries rows between ranks.

    All transports that are used over one group share ``resources``; without any, an instance makes
    its own, and is the only one to be used over its groups.

    ``gather`` and ``reduce`` launch when first advanced, without waiting. Whoever drives them waits
    for the works that they yield, each one once, and then advances them; values are complete when
    they end. All ranks launch the same schedules in the same order. Sent rows must not change, and
    received ones not be read, before the end.

    ``gather`` fills the row of every transfer's target with the owner's bytes. ``reduce`` leaves in
    each owner's row the sum over all holders: low precision is added up in float32 and rounded
    once, other dtypes keep theirs. At every rank, what arrives and the rank's own row are added in
    ascending order of ranks (a transport may say otherwise), so that repeats agree to the bit; what
    other ranks' rows hold afterwards is unspecified.

    ``hierarchical``: made for schedules of two levels. ``takes_everyone``: every rank must launch,
    even one that neither sends nor receives.
    """

    name: str
    hierarchical: bool
    takes_everyone: bool
    resources: LaunchResources

    def __init__(self, resources: LaunchResources | None = None) -> None: ...

    def gather(self, launch: Launch) -> Steps: ...

    def reduce(self, launch: Launch) -> Steps: ...
