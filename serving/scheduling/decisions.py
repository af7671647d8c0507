"""What one step computes, as a value that can be printed and replayed."""

from __future__ import annotations

from dataclasses import dataclass

from serving.memory.tables import BlockCopy


@dataclass(frozen=True)
class Chunk:
    """Tokens ``[start, stop)`` of one sequence; ``samples``: its next token comes of the last."""

    sequence_id: int
    start: int
    stop: int
    samples: bool


@dataclass(frozen=True)
class ScheduleDecision:
    """``chunks``: what is computed, those of one token first. ``copies``: of blocks, before it.

    ``admitted`` began, or began again, with this step; ``preempted`` gave their blocks back and
    will be computed again from their first token.
    """

    chunks: tuple[Chunk, ...]
    copies: tuple[BlockCopy, ...] = ()
    admitted: tuple[int, ...] = ()
    preempted: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(chunk.stop - chunk.start for chunk in self.chunks)
