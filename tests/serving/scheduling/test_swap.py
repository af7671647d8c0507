"""Sequences that give way keep a copy of their keys and values, and nobody reads what is not his.

Blocks hold, in these tests, the beginnings of the sequences whose keys and values they would hold:
each slot the tokens up to its own position, which is all that a key depends on.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.caches.prefix import NoPrefix, PrefixCache, RadixPrefix
from serving.memory.blocks import BlockPool
from serving.memory.swap import SwapSpace
from serving.memory.tiers import BlockCopy, Tier, Transfer
from serving.request import Request, Sampling
from serving.scheduling.config import SchedulingConfig
from serving.scheduling.costs import Lost, RecoveryCosts
from serving.scheduling.decisions import Chunk, ScheduleDecision
from serving.scheduling.preemption import Preemption
from serving.scheduling.scheduler import Scheduler
from serving.scheduling.sequences import Sequence

BLOCK = 4


class Choices:
    """Swaps as it is told, and remembers what it was asked."""

    def __init__(self, *answers: bool) -> None:
        self._answers = list(answers)
        self.asked: list[Lost] = []
        self.told: list[tuple[int, int]] = []

    def swaps(self, lost: Lost) -> bool:
        self.asked.append(lost)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    def found(self, tokens: int, lost: int) -> None:
        self.told.append((tokens, lost))


class Memory:
    """Two pools, what is in their blocks, and a scheduler over them."""

    def __init__(
        self, blocks: int, below: int, choice: Any, *, prefix: bool = False, **config: object
    ) -> None:
        self.pool = BlockPool(blocks, BLOCK)
        self.below = BlockPool(below, BLOCK, Tier.HOST)
        self.cache: PrefixCache = RadixPrefix(self.pool) if prefix else NoPrefix(self.pool)
        preemption = Preemption(self.pool, self.cache, SwapSpace(self.pool, self.below), choice)
        settings = SchedulingConfig.model_validate({"watermark": 0, **config})
        self.scheduler = Scheduler(settings, self.pool, self.cache, preemption)
        self.preemption = preemption
        empty: list[tuple[int, ...] | None] = [None] * BLOCK
        self.contents = {
            pool.tier: [list(empty) for _ in range(pool.total)] for pool in (self.pool, self.below)
        }

    def add(self, prompt: list[int], answer: int, *, n: int = 1, priority: int = 0) -> Sequence:
        name = f"{self.scheduler._next_id}"
        request = Request(name, tuple(prompt), Sampling(answer), n=n, priority=priority)
        return self.scheduler.add(request, b"")

    def step(self) -> ScheduleDecision:
        decision = self.scheduler.schedule()
        for transfer in decision.transfers:
            self._copy(transfer)
        for pool in (self.pool, self.below):  # what is free may hold anything now
            for block_id in range(pool.total):
                if not pool.holders(block_id):
                    self.contents[pool.tier][block_id] = [(-1,)] * BLOCK
        sequences = [self.scheduler.sequences[c.sequence_id] for c in decision.chunks]
        slots = Counter(
            slot
            for sequence, chunk in zip(sequences, decision.chunks, strict=True)
            for slot in self._compute(sequence, chunk)
        )
        assert not slots or max(slots.values()) == 1, "two sequences write to one slot"
        self.scheduler.commit(decision)
        for sequence, chunk in zip(sequences, decision.chunks, strict=True):
            if chunk.samples:
                for each in (sequence, *self.scheduler.fork(sequence)):
                    self._sample(each)
        return decision

    def _copy(self, transfer: Transfer) -> None:
        source, target = self.contents[transfer.source], self.contents[transfer.target]
        read = [list(source[copy.source]) for copy in transfer.copies]
        for copy, block in zip(transfer.copies, read, strict=True):
            target[copy.target] = block

    def _compute(self, sequence: Sequence, chunk: Chunk) -> list[tuple[int, int]]:
        blocks = self.contents[Tier.DEVICE]
        for position in range(chunk.start):
            block_id = sequence.table.block_ids[position // BLOCK]
            there = blocks[block_id][position % BLOCK]
            assert there == tuple(sequence.tokens[: position + 1]), (sequence.sequence_id, position)
        slots = []
        for position in range(chunk.start, chunk.stop):
            block_id = sequence.table.block_ids[position // BLOCK]
            assert self.pool.holders(block_id) == 1
            blocks[block_id][position % BLOCK] = tuple(sequence.tokens[: position + 1])
            slots.append((block_id, position % BLOCK))
        return slots

    def _sample(self, sequence: Sequence) -> None:
        sequence.tokens.append((sequence.index + sequence.generated // 3) % 2)
        if sequence.generated >= sequence.request.sampling.max_tokens:
            self.scheduler.remove(sequence)

    def check(self) -> None:
        """Every block's holders are known."""
        held: Counter[int] = Counter()
        below: Counter[int] = Counter()
        for sequence in self.scheduler.sequences.values():
            held.update(sequence.table.block_ids)
            if sequence.preempted is not None and sequence.preempted.swapped is not None:
                below.update(h.block_id for h in sequence.preempted.swapped.blocks)
        if isinstance(self.cache, RadixPrefix):
            nodes = [node for root in self.cache._roots.values() for node in root.children.values()]
            while nodes:
                node = nodes.pop()
                held[node.block_id] += 1
                nodes += node.children.values()
        for pool, expected in ((self.pool, held), (self.below, below)):
            assert [pool.holders(b) for b in range(pool.total)] == [
                expected[b] for b in range(pool.total)
            ]
            assert pool.used == len(+expected)

    def finish(self, most: int = 2000) -> None:
        """Step until all has ended; then nothing is held."""
        while self.scheduler.sequences:
            decision = self.step()
            assert decision.chunks
            self.check()
            most -= 1
            assert most
        self.cache.evict(self.pool.total)
        assert self.pool.free == self.pool.total and self.below.free == self.below.total
        assert self.preemption.swapped_blocks == 0


def test_a_victim_is_copied_out_and_back_and_computes_nothing_twice() -> None:
    choices = Choices(True)
    memory = Memory(4, 8, choices, max_batch_tokens=64)
    memory.add(list(range(10, 17)), 4)  # 7 tokens, which its first of 4 answers fill to 8
    memory.add(list(range(20, 28)), 4)
    memory.step()
    assert memory.scheduler.sequences[1].table.block_ids == [2, 3]
    decision = memory.step()
    out = Transfer(Tier.DEVICE, Tier.HOST, (BlockCopy(2, 0), BlockCopy(3, 1)))
    assert decision.preempted == (1,) and decision.transfers == (out,)
    assert choices.asked == [Lost(tokens=8, blocks=2, copied=2)]
    assert memory.preemption.swapped_blocks == 2
    memory.step()
    memory.step()  # the first has ended
    decision = memory.step()
    (back,) = decision.transfers
    assert (back.source, back.target) == (Tier.HOST, Tier.DEVICE)
    assert [copy.source for copy in back.copies] == [0, 1]
    assert decision.chunks == (Chunk(1, 8, 9, True),)
    assert choices.told == [(0, 8)]
    memory.finish()
    assert memory.scheduler.recomputed_tokens_total == 0
    assert (memory.preemption.swap_outs_total, memory.preemption.swap_ins_total) == (1, 1)


def test_what_finds_no_room_below_is_computed_again() -> None:
    choices = Choices(True)
    memory = Memory(4, 1, choices, max_batch_tokens=64)
    memory.add(list(range(10, 17)), 4)
    memory.add(list(range(20, 28)), 4)
    memory.step()
    assert memory.step().transfers == () and not choices.asked
    memory.finish()
    assert memory.preemption.swap_outs_total == 0
    assert memory.scheduler.recomputed_tokens_total == 8


def test_forks_share_the_copy_of_their_prompt_out_and_back() -> None:
    memory = Memory(9, 20, Choices(True), max_batch_tokens=64)
    memory.add(list(range(10, 16)), 14, priority=1, n=2)  # two blocks, the second one half full
    memory.step()
    first, second = memory.scheduler.sequences[0], memory.scheduler.sequences[1]
    shared = first.table.block_ids[0]
    assert second.table.block_ids[0] == shared
    memory.add(list(range(30, 50)), 14)  # five blocks, nine in the end: both have to go
    out: list[int] = []
    while not (first.preempted and second.preempted):
        for transfer in memory.step().transfers:
            if transfer.target is Tier.HOST:
                out += [copy.source for copy in transfer.copies]
        memory.check()
    assert first.preempted.swapped and second.preempted.swapped
    copy = first.preempted.swapped.blocks[0]
    assert second.preempted.swapped.blocks[0] == copy and memory.below.holders(copy.block_id) == 2
    assert out.count(shared) == 1
    back: list[int] = []
    while first.preempted or second.preempted:
        for transfer in memory.step().transfers:
            if transfer.source is Tier.HOST:
                back += [each.source for each in transfer.copies]
    assert first.table.block_ids[0] == second.table.block_ids[0]
    assert back.count(copy.block_id) == 1
    memory.finish()
    assert memory.scheduler.recomputed_tokens_total == 0


def test_who_is_cancelled_while_it_is_swapped_gives_back_its_copy() -> None:
    memory = Memory(4, 8, Choices(True), max_batch_tokens=64)
    memory.add(list(range(10, 17)), 4)
    victim = memory.add(list(range(20, 28)), 4)
    memory.step()
    memory.step()
    assert memory.below.used == 2
    memory.scheduler.remove(victim)
    memory.check()
    assert memory.below.used == 0
    memory.finish()


def test_what_others_use_is_not_counted_as_lost() -> None:
    choices = Choices(False)
    memory = Memory(6, 8, choices, prefix=True, max_batch_tokens=64)
    common = list(range(10, 18))  # two blocks
    memory.add([*common, 1], 12)
    memory.step()
    memory.add([*common, 2, 3, 4], 12)
    while not choices.asked:
        memory.step()
        memory.check()
    victim = memory.scheduler.sequences[1]
    assert victim.preempted is not None and victim.preempted.kept == 8
    tokens = victim.preempted.tokens
    assert choices.asked == [Lost(tokens - 8, -(-tokens // BLOCK) - 2, -(-tokens // BLOCK))]
    memory.finish()
    assert choices.told and choices.told[0][1] == tokens - 8


def test_the_cheaper_way_is_by_measured_costs() -> None:
    costs = RecoveryCosts()
    for _ in range(200):
        costs.computed(2.0, 1000)  # 2 ms a token
        costs.copied(0.1, 10)  # 10 ms a block
    lost = Lost(tokens=100, blocks=7, copied=5)
    # 100 x 2 ms; (5 + 7) x 10 ms
    assert abs(costs.recompute_s(lost) - 0.2) < 1e-4 and abs(costs.swap_s(lost) - 0.12) < 1e-4
    assert costs.swaps(lost)
    assert not costs.swaps(Lost(tokens=50, blocks=7, copied=5))
    for _ in range(200):
        costs.found(75, 100)  # three quarters are in the cache when a sequence comes back
    # 25 x 2 ms; (5 + 7 / 4) x 10 ms
    assert abs(costs.recompute_s(lost) - 0.05) < 1e-3 and abs(costs.swap_s(lost) - 0.0675) < 1e-3
    assert not costs.swaps(lost)
    for _ in range(60):
        costs.computed(5.0, 1000)  # the newest counts
    assert costs.swaps(lost)
    dear = Lost(tokens=1, blocks=9, copied=9)
    tried = [costs.swaps(dear) for _ in range(33)]
    assert [place for place, swapped in enumerate(tried) if swapped] == [15, 31]


class Anything(RuleBasedStateMachine):
    """Requests with equal beginnings come, fork, are cancelled and preempted, in a small memory,
    with an arbitrary choice for each victim."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: Memory | None = None

    @precondition(lambda self: self.memory is None)
    @rule(
        seed=st.integers(0, 2**16),
        prefix=st.booleans(),
        below=st.sampled_from((1, 4, 40)),
        budget=st.integers(3, 40),
        places=st.integers(3, 6),
        watermark=st.sampled_from((0.0, 0.2)),
        quantum=st.integers(0, 2),
    )
    def begin(
        self,
        seed: int,
        prefix: bool,
        below: int,
        budget: int,
        places: int,
        watermark: float,
        quantum: int,
    ) -> None:
        draw = random.Random(seed)
        choices = Choices(*(draw.random() < 0.7 for _ in range(200)))
        self.memory = Memory(
            10,
            below,
            choices,
            prefix=prefix,
            max_batch_tokens=budget,
            max_sequences=places,
            watermark=watermark,
            quantum_steps=quantum,
        )

    @precondition(lambda self: self.memory is not None)
    @rule(
        length=st.integers(1, 20),
        own=st.integers(0, 20),
        answer=st.integers(1, 14),
        n=st.integers(1, 3),
        priority=st.integers(0, 2),
    )
    def add(self, length: int, own: int, answer: int, n: int, priority: int) -> None:
        assert self.memory is not None
        prompt = [100 + (0 if i < own else length) + i for i in range(length)]
        self.memory.add(prompt, answer, n=n, priority=priority)

    @precondition(lambda self: self.memory is not None)
    @rule(steps=st.integers(1, 6))
    def run(self, steps: int) -> None:
        assert self.memory is not None
        for _ in range(steps):
            self.memory.step()
            self.memory.check()

    @precondition(lambda self: self.memory is not None and self.memory.scheduler.sequences)
    @rule(which=st.integers(0, 30), priority=st.integers(-1, 3))
    def prioritise(self, which: int, priority: int) -> None:
        assert self.memory is not None
        sequences = list(self.memory.scheduler.sequences.values())
        request_id = sequences[which % len(sequences)].request.request_id
        self.memory.scheduler.prioritise({request_id: priority})

    @precondition(lambda self: self.memory is not None and self.memory.scheduler.sequences)
    @rule(which=st.integers(0, 30))
    def cancel(self, which: int) -> None:
        assert self.memory is not None
        sequences = list(self.memory.scheduler.sequences.values())
        self.memory.scheduler.remove(sequences[which % len(sequences)])

    @invariant()
    def all_is_held_by_somebody(self) -> None:
        if self.memory is not None:
            self.memory.check()

    def teardown(self) -> None:
        if self.memory is not None:
            self.memory.finish()


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
