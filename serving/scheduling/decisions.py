"""What one step computes, as a value that can be printed and replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.memory.tiers import BlockCopy, Tier, Transfer


@dataclass(frozen=True)
class Chunk:
    """Tokens ``[start, stop)`` of one sequence; ``samples``: its next token comes of the last."""

    sequence_id: int
    start: int
    stop: int
    samples: bool


@dataclass(frozen=True)
class ScheduleDecision:
    """``chunks``: what is computed, those of one token first. ``transfers``: of blocks, before it,
    in order.

    ``admitted`` began, or began again, with this step; ``preempted`` gave their blocks back and
    will be computed again, or copied back.
    """

    chunks: tuple[Chunk, ...]
    transfers: tuple[Transfer, ...] = ()
    admitted: tuple[int, ...] = ()
    preempted: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(chunk.stop - chunk.start for chunk in self.chunks)


def transfers(
    out: Sequence[BlockCopy], copies: Sequence[BlockCopy], back: Sequence[BlockCopy]
) -> tuple[Transfer, ...]:
    """Blocks that were swapped ``out`` first, since others have been given them; those that come
    ``back`` last, since they may have been given what ``copies`` within the device still read."""
    ways = (
        (Tier.DEVICE, Tier.HOST, out),
        (Tier.DEVICE, Tier.DEVICE, copies),
        (Tier.HOST, Tier.DEVICE, back),
    )
    return tuple(Transfer(source, target, tuple(each)) for source, target, each in ways if each)
