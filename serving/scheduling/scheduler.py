"""First come, first served within a priority; prompts in chunks beside decoding.

Continuous batching (Orca, OSDI 2022) with chunked prefill under a token budget (Sarathi-Serve,
2403.02310) and preemption of the least urgent: for memory, and for whoever waits and is more urgent
by enough. Priorities may change at any time between two steps.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field

from serving.caches.prefix.protocol import PrefixCache
from serving.memory.blocks import BlockPool
from serving.memory.tables import BlockTable
from serving.memory.tiers import BlockCopy, Transfer
from serving.request import NO_LOGPROBS, Request
from serving.scheduling.config import SchedulingConfig
from serving.scheduling.decisions import Chunk, ScheduleDecision, transfers
from serving.scheduling.preemption import Preemption
from serving.scheduling.sequences import Sequence


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

    def prioritise(self, priorities: Mapping[str, int]) -> None:
        """Requests, by their ids, are so urgent from the next step on; unknown ids are fine."""
        for sequence in self._sequences.values():
            priority = priorities.get(sequence.request.request_id, sequence.priority)
            sequence.order = (priority, *sequence.order[1:])
        self._waiting.sort(key=_urgency)
        self._running.sort(key=_urgency)

    def schedule(self) -> ScheduleDecision:
        """The next step; empty ``chunks`` only where nothing is left to do."""
        step = _Step(self._config.max_batch_tokens, self._config.max_scored_tokens)
        overtaken = self._give_way(step.out)
        later = self._prompts_behind()
        preempted: list[int] = []
        for sequence in list(self._running):
            if step.tokens == 0:
                break
            if sequence in later or sequence not in self._running:  # preempted for another
                continue
            stop = step.stop(sequence)
            if stop > sequence.computed and self._make_room(sequence, stop, preempted, step.out):
                step.add(sequence)
        admitted: list[int] = []
        while step.tokens and self._waiting and not preempted:
            sequence = self._waiting[0]
            if sequence.sequence_id in overtaken or self._places() <= sequence.forks:
                break
            if not self._admit(sequence, step):
                break
            step.add(sequence)
            admitted.append(sequence.sequence_id)
        for sequence in later:
            if step.tokens == 0:
                break
            stop = step.stop(sequence)
            if sequence not in self._running or stop == sequence.computed:
                continue
            if step.chunks:  # from whoever has one nothing can be taken any more in this step
                room = self._free(sequence.table.missing(sequence.computed, stop))
            else:
                room = self._make_room(sequence, stop, preempted, step.out)
            if room:
                step.add(sequence)
        step.chunks.sort(key=lambda chunk: chunk.stop - chunk.start > 1)
        lowered, raised = self._prefix.moved()
        moved = transfers([*step.out, *lowered], step.copies, [*step.back, *raised])
        gone = tuple(overtaken + preempted)
        return ScheduleDecision(tuple(step.chunks), moved, tuple(admitted), gone)

    def commit(self, decision: ScheduleDecision) -> None:
        """The step is computed: count it, and publish prompts' full blocks to the cache."""
        for chunk in decision.chunks:
            sequence = self._sequences[chunk.sequence_id]
            again = min(chunk.stop, sequence.reached) - chunk.start
            self.recomputed_tokens_total += max(0, again)
            sequence.computed = chunk.stop
            sequence.held += 1
            sequence.reached = max(sequence.reached, chunk.stop)
            if chunk.stop - chunk.start > 1 or chunk.stop == len(sequence.request.prompt):
                self._publish(sequence)

    def fetch(self, scope: bytes, tokens: list[int]) -> tuple[Transfer, ...]:
        """Have on the device what there is of a prompt that is expected; the copies that it takes,
        to be run before the next step."""
        self._pool.release(self._prefix.match(scope, tokens))
        out, back = self._prefix.moved()
        return transfers(out, (), back)

    def touch(self, scope: bytes, tokens: list[int]) -> None:
        """Of a prompt that is expected, what there is gives way later than what was used before."""
        self._prefix.touch(scope, tokens)

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
            fork.reached, fork.held = sequence.reached, sequence.held
            fork.order = (sequence.priority, *fork.order[1:])
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

    def _admit(self, sequence: Sequence, step: _Step) -> bool:
        """Start ``sequence`` from what there is of it, if its next chunk fits."""
        if sequence.scored and not step.scored:
            return False
        beginning = self.preemption.beginning(sequence)
        table, computed = beginning.table, beginning.computed
        stop = computed + step.share(sequence, computed)
        reserve = self._reserve if self._running else 0
        if not self._free(table.missing(computed, stop) + reserve):
            table.release()
            return False
        step.back += self.preemption.resume(sequence, beginning)
        if not sequence.admissions:
            sequence.cached = computed
            self.prefix_query_tokens_total += len(sequence.request.prompt)
            self.prefix_hit_tokens_total += computed
        sequence.admissions += 1
        sequence.held = 0
        self._waiting.remove(sequence)
        bisect.insort(self._running, sequence, key=_urgency)
        return True

    def _make_room(
        self, sequence: Sequence, stop: int, preempted: list[int], out: list[BlockCopy]
    ) -> bool:
        """Whether ``sequence`` may go on to ``stop``; who is less urgent gives way, or itself."""
        while not self._free(sequence.table.missing(sequence.computed, stop)):
            victim = self._running[-1]
            out += self._preempt(victim)
            preempted.append(victim.sequence_id)
            if victim is sequence:
                return False
        return True

    def _give_way(self, out: list[BlockCopy]) -> list[int]:
        """Take places and blocks from what runs for what waits and is more urgent by enough.

        From the least urgent on, for as many as the step's tokens let begin, and from nobody for
        one that would not begin all the same. Prompts that are scored wait for a place.
        """
        overtaken: list[int] = []
        if not self._waiting or not self._behind(self._waiting[0]):
            return overtaken
        later = self._prompts_behind()
        ahead = sum(each.pending for each in self._running if each not in later)
        budget = self._config.max_batch_tokens - ahead
        places = self._places()
        taken = self._reserve + sum(_growth(each) for each in self._running)
        for sequence in list(self._waiting):
            victims = [each for each in self._behind(sequence) if self._may_go(each)]
            if budget <= 0 or not victims or sequence.scored:
                break
            beginning = self.preemption.beginning(sequence)
            start, left = beginning.computed, len(sequence.tokens) - beginning.computed
            blocks = beginning.table.missing(start, start + min(left, budget)) + taken
            while places <= sequence.forks or not self._free(blocks):
                most = places + sum(1 + victim.forks for victim in victims)
                held = sum(len(victim.table.block_ids) + _growth(victim) for victim in victims)
                if most <= sequence.forks or self._pool.free + held < blocks:
                    break
                victim = victims.pop(0)
                places += 1 + victim.forks
                budget += 0 if victim in later else victim.pending
                taken -= (grows := _growth(victim))
                blocks -= grows
                out += self._preempt(victim)
                overtaken.append(victim.sequence_id)
            beginning.table.release()
            if places <= sequence.forks or not self._free(blocks):
                break
            places -= 1 + sequence.forks
            budget -= min(left, budget)
            taken = blocks
        return overtaken

    def _behind(self, sequence: Sequence) -> list[Sequence]:
        """What runs and is less urgent than ``sequence`` by enough, the least urgent first."""
        margin = self._config.overtaking
        behind = (each for each in reversed(self._running) if margin)
        return [each for each in behind if each.priority - sequence.priority >= margin]

    def _may_go(self, sequence: Sequence) -> bool:
        return sequence.held >= self._config.quantum_steps < sequence.left

    def _prompts_behind(self) -> list[Sequence]:
        """Prompts under way that leave a step's tokens to what waits and is more urgent by enough,
        the most urgent first."""
        behind = self._behind(self._waiting[0]) if self._waiting else []
        return [each for each in reversed(behind) if each.pending > 1]

    def _preempt(self, victim: Sequence) -> tuple[BlockCopy, ...]:
        """It waits again; the copies that keep what it had."""
        self._running.remove(victim)
        self._publish(victim)
        copies = self.preemption.preempt(victim)
        bisect.insort(self._waiting, victim, key=_urgency)
        return copies

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


def _growth(sequence: Sequence) -> int:
    """Blocks that it takes to compute what is pending."""
    return sequence.table.missing(sequence.computed, len(sequence.tokens))


@dataclass
class _Step:
    """A decision on its way. ``tokens`` may still be computed, of which ``scored`` of prompts whose
    tokens all need logits."""

    tokens: int
    scored: int
    chunks: list[Chunk] = field(default_factory=list)
    out: list[BlockCopy] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)
    back: list[BlockCopy] = field(default_factory=list)

    def share(self, sequence: Sequence, computed: int) -> int:
        """How many of the tokens after ``computed`` are computed now."""
        count = min(len(sequence.tokens) - computed, self.tokens)
        return min(count, self.scored) if sequence.scored else count

    def stop(self, sequence: Sequence) -> int:
        """Where its next chunk would end; where it is, if there is none."""
        return sequence.computed + self.share(sequence, sequence.computed)

    def add(self, sequence: Sequence) -> None:
        """Its next chunk, for which there is room."""
        start, stop = sequence.computed, self.stop(sequence)
        self.copies += sequence.table.prepare(start, stop)
        self.chunks.append(Chunk(sequence.sequence_id, start, stop, stop == len(sequence.tokens)))
        self.tokens -= stop - start
        if sequence.scored:
            self.scored -= stop - start
