"""How a sequence gives up its blocks for a more urgent one, and what it begins again with."""

from __future__ import annotations

from dataclasses import dataclass

from serving.caches.prefix.protocol import PrefixCache
from serving.memory.blocks import BlockPool, blocks_for
from serving.memory.swap import SwappedTable, SwapSpace
from serving.memory.tables import BlockTable
from serving.memory.tiers import BlockCopy
from serving.scheduling.costs import AlwaysSwap, Choice, Lost
from serving.scheduling.sequences import Preempted, Sequence


@dataclass(frozen=True)
class Beginning:
    """``matched``: tokens that the prefix cache has. ``computed``: those that will have keys and
    values when the sequence is resumed, of which ``table`` lacks what is to be copied."""

    table: BlockTable
    matched: int
    computed: int


class Preemption:
    """By recomputation or, where there is a ``swap`` with room and the choice is so, by a copy of
    the blocks (vLLM, 2309.06180, section 4.5, which has both).

    Whole blocks are in the prefix cache as well, until it has to give them up: what is found there
    is neither computed nor copied.
    """

    def __init__(
        self,
        pool: BlockPool,
        prefix: PrefixCache,
        swap: SwapSpace | None = None,
        choice: Choice | None = None,
    ) -> None:
        self._pool = pool
        self._prefix = prefix
        self._swap = swap
        self._choice = choice or AlwaysSwap()
        self.preemptions_total = 0
        self.swap_outs_total = 0
        self.swap_ins_total = 0

    @property
    def swapped_blocks(self) -> int:
        """How many blocks are swapped out now."""
        return self._swap.below.used if self._swap is not None else 0

    def preempt(self, victim: Sequence) -> tuple[BlockCopy, ...]:
        """Take its blocks, which are published; the copies that keep what is in them."""
        block_ids, tokens = victim.table.block_ids, victim.computed
        victim.table.release()
        victim.computed = 0
        self.preemptions_total += 1
        kept = self._prefix.kept(victim.scope, victim.tokens[:tokens]) * self._pool.block_tokens
        swapped, copies = self._swap_out(block_ids, tokens, kept)
        victim.preempted = Preempted(tokens, kept, swapped)
        return copies

    def beginning(self, sequence: Sequence) -> Beginning:
        """What ``sequence`` has to begin with, held for it."""
        # The last one is computed, so that there are logits; of a prompt whose tokens all need
        # theirs, whatever has not been.
        query = sequence.tokens[: sequence.reached if sequence.scored else -1]
        block_ids = self._prefix.match(sequence.scope, query)
        matched = computed = len(block_ids) * self._pool.block_tokens
        swapped = sequence.preempted.swapped if sequence.preempted else None
        if swapped is not None and swapped.tokens > matched:
            assert self._swap is not None
            block_ids += self._swap.present(swapped, len(block_ids))
            computed = swapped.tokens
        return Beginning(BlockTable(self._pool, block_ids), matched, computed)

    def resume(self, sequence: Sequence, beginning: Beginning) -> tuple[BlockCopy, ...]:
        """It goes on from there; the copies that fill the rest of its table, for which there is
        room."""
        sequence.table, sequence.computed = beginning.table, beginning.computed
        preempted, sequence.preempted = sequence.preempted, None
        if preempted is None:
            return ()
        lost = preempted.tokens - preempted.kept
        if lost:
            found = min(max(0, beginning.matched - preempted.kept), lost)
            self._choice.found(found, lost)
        if preempted.swapped is None:
            return ()
        assert self._swap is not None
        self.swap_ins_total += 1
        return self._swap.swap_in(preempted.swapped, sequence.table)

    def forget(self, sequence: Sequence) -> None:
        """It has ended."""
        if sequence.preempted is not None and sequence.preempted.swapped is not None:
            assert self._swap is not None
            self._swap.drop(sequence.preempted.swapped)
        sequence.preempted = None

    def _swap_out(
        self, block_ids: list[int], tokens: int, kept: int
    ) -> tuple[SwappedTable | None, tuple[BlockCopy, ...]]:
        if self._swap is None or tokens == kept:
            return None, ()
        copied = self._swap.copied(block_ids)
        blocks = blocks_for(tokens, self._pool.block_tokens) - kept // self._pool.block_tokens
        lost = Lost(tokens - kept, blocks, copied)
        if copied > self._swap.below.free or not self._choice.swaps(lost):
            return None, ()
        self.swap_outs_total += 1
        return self._swap.swap_out(block_ids, tokens)
