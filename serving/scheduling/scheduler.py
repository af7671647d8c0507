"""First come, first served within a priority; prompts in chunks beside decoding.

Continuous batching (Orca, OSDI 2022) with chunked prefill under a token budget (Sarathi-Serve,
2403.02310) and preemption of the least urgent.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass

from serving.caches.prefix.protocol import PrefixCache
from serving.memory.blocks import BlockPool
from serving.memory.tables import BlockTable
from serving.memory.tiers import BlockCopy
from serving.request import NO_LOGPROBS, Request
from serving.scheduling.config import SchedulingConfig
from serving.scheduling.decisions import Chunk, ScheduleDecision, transfers
from serving.scheduling.preemption import Preemption
from serving.scheduling.sequences import Sequence


@dataclass
class _Budget:
    """Tokens that a step has left; ``scored``: of prompts whose tokens all need logits."""

    tokens: int
    scored: int

    def share(self, sequence: Sequence, computed: int) -> int:
        """How many of the tokens after ``computed`` are computed now."""
        count = min(len(sequence.tokens) - computed, self.tokens)
        return min(count, self.scored) if sequence.scored else count

    def spend(self, sequence: Sequence, stop: int) -> None:
        """``sequence`` goes on to ``stop``."""
        self.tokens -= stop - sequence.computed
        if sequence.scored:
            self.scored -= stop - sequence.computed


class Scheduler:
    """Holds what waits and runs, and decides each step.

    A step is ``schedule``, then ``commit`` with the tokens that were sampled; between the two
    nothing else is called. Who is most urgent can always run: it takes the blocks of the least
    urgent, so that a sequence which fits the pool alone is answered in the end.
    """

    def __init__(
        self,
        config: SchedulingConfig,
        pool: BlockPool,
        prefix: PrefixCache,
        preemption: Preemption | None = None,
    ) -> None:
        """``preemption``: by recomputation alone, where there is none."""
        self._config = config
        self._pool = pool
        self._prefix = prefix
        self._waiting: list[Sequence] = []  # both in order of urgency
        self._running: list[Sequence] = []
        self._sequences: dict[int, Sequence] = {}
        self._next_id = 0
        self._reserve = int(config.watermark * pool.total)
        self.preemption = preemption or Preemption(pool, prefix)
        self.recomputed_tokens_total = 0
        self.prefix_query_tokens_total = 0
        self.prefix_hit_tokens_total = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def blocks_cached(self) -> int:
        return len(self._prefix)

    @property
    def sequences(self) -> Mapping[int, Sequence]:
        return self._sequences

    def add(self, request: Request, scope: bytes) -> Sequence:
        """``request`` waits from now on; its other answers branch off the first one's prompt."""
        sequence = self._new(request, 0, scope, BlockTable(self._pool), list(request.prompt))
        sequence.forks = request.n - 1
        if request.sampling.prompt_logprobs != NO_LOGPROBS:
            sequence.scored_tokens = len(request.prompt)
        bisect.insort(self._waiting, sequence, key=_urgency)
        return sequence

    def schedule(self) -> ScheduleDecision:
        """The next step; empty ``chunks`` only where nothing is left to do."""
        budget = _Budget(self._config.max_batch_tokens, self._config.max_scored_tokens)
        chunks: list[Chunk] = []
        out: list[BlockCopy] = []
        copies: list[BlockCopy] = []
        back: list[BlockCopy] = []
        preempted: list[int] = []
        for sequence in list(self._running):
            if budget.tokens == 0:
                break
            if sequence not in self._running:  # preempted for a more urgent one
                continue
            stop = sequence.computed + budget.share(sequence, sequence.computed)
            if stop == sequence.computed:
                continue
            if not self._make_room(sequence, stop, preempted, out):
                continue
            copies += sequence.table.prepare(sequence.computed, stop)
            chunks.append(_chunk(sequence, stop))
            budget.spend(sequence, stop)
        admitted: list[int] = []
        while budget.tokens and self._waiting and not preempted:
            sequence = self._waiting[0]
            if self._places() <= sequence.forks or not self._admit(sequence, budget, back):
                break
            stop = sequence.computed + budget.share(sequence, sequence.computed)
            copies += sequence.table.prepare(sequence.computed, stop)
            chunks.append(_chunk(sequence, stop))
            budget.spend(sequence, stop)
            admitted.append(sequence.sequence_id)
        chunks.sort(key=lambda chunk: chunk.stop - chunk.start > 1)
        moved = transfers(out, copies, back)
        return ScheduleDecision(tuple(chunks), moved, tuple(admitted), tuple(preempted))

    def commit(self, decision: ScheduleDecision) -> None:
        """The step is computed: count it, and publish prompts' full blocks to the cache."""
        for chunk in decision.chunks:
            sequence = self._sequences[chunk.sequence_id]
            again = min(chunk.stop, sequence.reached) - chunk.start
            self.recomputed_tokens_total += max(0, again)
            sequence.computed = chunk.stop
            sequence.reached = max(sequence.reached, chunk.stop)
            if chunk.stop - chunk.start > 1 or chunk.stop == len(sequence.request.prompt):
                self._publish(sequence)

    def fork(self, sequence: Sequence) -> list[Sequence]:
        """The other answers of a request whose prompt is computed, over the same blocks."""
        forks = []
        for index in range(1, sequence.forks + 1):
            fork = self._new(
                sequence.request,
                index,
                sequence.scope,
                sequence.table.fork(),
                list(sequence.tokens),
            )
            fork.computed, fork.cached = sequence.computed, sequence.cached
            fork.reached = sequence.reached
            fork.admissions = 1
            bisect.insort(self._running, fork, key=_urgency)
            forks.append(fork)
        sequence.forks = 0
        return forks

    def remove(self, sequence: Sequence) -> None:
        """It has ended: what it computed is published, its blocks are given back."""
        self._publish(sequence)
        sequence.table.release()
        self.preemption.forget(sequence)
        del self._sequences[sequence.sequence_id]
        for queue in (self._running, self._waiting):
            if sequence in queue:
                queue.remove(sequence)

    def _new(
        self, request: Request, index: int, scope: bytes, table: BlockTable, tokens: list[int]
    ) -> Sequence:
        sequence_id = self._next_id
        self._next_id += 1
        order = (request.priority, request.arrival_s, sequence_id)
        sequence = Sequence(sequence_id, request, index, scope, table, tokens, order=order)
        self._sequences[sequence_id] = sequence
        return sequence

    def _places(self) -> int:
        """How many more answers may run; what is still to branch off counts already."""
        forks = sum(sequence.forks for sequence in self._running)
        return max(0, self._config.max_sequences - len(self._running) - forks)

    def _admit(self, sequence: Sequence, budget: _Budget, back: list[BlockCopy]) -> bool:
        """Start ``sequence`` from what there is of it, if its next chunk fits."""
        if sequence.scored and not budget.scored:
            return False
        beginning = self.preemption.beginning(sequence)
        table, computed = beginning.table, beginning.computed
        stop = computed + budget.share(sequence, computed)
        reserve = self._reserve if self._running else 0
        if not self._free(table.missing(computed, stop) + reserve):
            table.release()
            return False
        back += self.preemption.resume(sequence, beginning)
        if not sequence.admissions:
            sequence.cached = computed
            self.prefix_query_tokens_total += len(sequence.request.prompt)
            self.prefix_hit_tokens_total += computed
        sequence.admissions += 1
        self._waiting.remove(sequence)
        bisect.insort(self._running, sequence, key=_urgency)
        return True

    def _make_room(
        self, sequence: Sequence, stop: int, preempted: list[int], out: list[BlockCopy]
    ) -> bool:
        """Whether ``sequence`` may go on to ``stop``; who is less urgent gives way, or itself."""
        while not self._free(sequence.table.missing(sequence.computed, stop)):
            victim = self._running[-1]
            self._running.remove(victim)
            self._publish(victim)
            out += self.preemption.preempt(victim)
            bisect.insort(self._waiting, victim, key=_urgency)
            preempted.append(victim.sequence_id)
            if victim is sequence:
                return False
        return True

    def _free(self, count: int) -> bool:
        """Whether ``count`` blocks are free, after the cache gave up what it must."""
        if self._pool.free < count:
            self._prefix.evict(count - self._pool.free)
        return self._pool.free >= count

    def _publish(self, sequence: Sequence) -> None:
        whole = sequence.computed // self._pool.block_tokens
        tokens = sequence.tokens[: whole * self._pool.block_tokens]
        self._prefix.insert(sequence.scope, tokens, sequence.table.block_ids[:whole])


def _urgency(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.order


def _chunk(sequence: Sequence, stop: int) -> Chunk:
    return Chunk(sequence.sequence_id, sequence.computed, stop, stop == len(sequence.tokens))
