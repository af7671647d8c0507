"""One answer on its way."""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.memory.swap import SwappedTable
from serving.memory.tables import BlockTable
from serving.request import Request


@dataclass(frozen=True)
class Preempted:
    """What a sequence gave up: ``tokens`` that had keys and values, of which the first ``kept`` are
    in use by others too. ``swapped``: where a copy lies, if there is one."""

    tokens: int
    kept: int
    swapped: SwappedTable | None


@dataclass(eq=False)
class Sequence:
    """``tokens``: prompt and answer so far. ``computed``: how many have keys and values, and
    ``reached`` how many had at most.

    ``scored_tokens``: so many of the first need logits of their own, all of the prompt or none.
    ``scope``: for whom its blocks are good. ``forks``: how many more answers branch off it when its
    prompt is computed. ``cached``: tokens of the prompt that came out of a cache, the first time.
    ``held``: steps that computed something of it since it was admitted last.
    """

    sequence_id: int
    request: Request
    index: int
    scope: bytes
    table: BlockTable
    tokens: list[int]
    forks: int = 0
    computed: int = 0
    reached: int = 0
    cached: int = 0
    scored_tokens: int = 0
    admissions: int = 0
    held: int = 0
    preempted: Preempted | None = None
    order: tuple[int, float, int] = field(default=(0, 0.0, 0))

    @property
    def priority(self) -> int:
        """Lower goes first; it may change while the sequence waits or runs."""
        return self.order[0]

    @property
    def left(self) -> int:
        """How many tokens its answer may still get."""
        return self.request.sampling.max_tokens - self.generated

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def scored(self) -> bool:
        """Whether logits are wanted of all tokens of the prompt, which is not computed yet."""
        return self.reached < self.scored_tokens

    @property
    def pending(self) -> int:
        """Tokens that have no keys and values yet."""
        return len(self.tokens) - self.computed
