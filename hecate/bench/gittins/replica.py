"""An engine of the native kind, simulated: what it computes in which step, and how long it takes.

Its rules are those of ``serving.scheduling.scheduler``: all that runs goes on with a token each or
with as much of its prompt as the step has room for, then what waits is admitted in order while
there are places, blocks and tokens left. Steps in which nothing changes but lengths are taken
together.
"""

from __future__ import annotations

import bisect
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from hecate.bench.gittins.steps import StepTimes, StepWork
from serving.scheduling.applications.live import Ask, Live
from serving.scheduling.applications.order import Place


@dataclass(frozen=True)
class EngineShape:
    """As in ``SchedulingConfig`` and ``MemoryConfig``; ``blocks``: how many there are."""

    sequences: int
    blocks: int
    batch_tokens: int = 1024
    block_tokens: int = 16
    watermark: float = 0.01
    quantum_steps: int = 8


@dataclass(eq=False, slots=True)
class Sequence:
    """A request. ``computed``: its tokens with keys and values, ``reached`` at most;
    ``made``: those of its answer. ``held``: steps since it was admitted."""

    live: Live
    ask: Ask
    output: int
    place: Place
    computed: int = 0
    reached: int = 0
    made: int = 0
    held: int = 0

    @property
    def tokens(self) -> int:
        return self.ask.prompt_tokens + self.made


Served = Callable[[Sequence, int, int], None]
"""A sequence, and how many tokens of its prompt and of its answer were computed."""


class Replica:
    """One engine. ``gives_way``: whether the first place is to be left to the second; ``served``:
    is told what was computed.

    What a sequence had when it lost its place stays in memory until others need it, the oldest
    first, as in the engine's prefix cache; what is gone then is computed again.
    """

    def __init__(
        self,
        shape: EngineShape,
        times: StepTimes,
        served: Served,
        gives_way: Callable[[Place, Place], bool] | None = None,
    ) -> None:
        self.shape = shape
        self.times = times
        self._served = served
        self._gives_way = gives_way
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._used = 0  # blocks of what runs
        self._kept: OrderedDict[Sequence, int] = OrderedDict()
        self._kept_blocks = 0
        self._reserve = int(shape.watermark * shape.blocks)
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        bisect.insort(self.waiting, sequence, key=_place)

    def sort(self) -> None:
        """After places have changed."""
        self.waiting.sort(key=_place)
        self.running.sort(key=_place)

    def step(self, until_s: float) -> tuple[float, list[Sequence]]:
        """Compute a step, or several that are alike, the last of which is the first to end
        ``until_s`` seconds from now or later: how long it took, and who has ended."""
        self._take_places()
        together = self._decode(until_s)
        return together if together is not None else self._one()

    def _take_places(self) -> None:
        if self._gives_way is None:
            return
        while self.waiting and len(self.running) >= self.shape.sequences:
            urgent, quantum = self.waiting[0].place, self.shape.quantum_steps
            victims = (
                each
                for each in reversed(self.running)
                if self._gives_way(each.place, urgent)
                and each.held >= quantum < each.output - each.made
            )
            victim = next(victims, None)
            if victim is None:
                return
            self._preempt(victim)

    def _decode(self, until_s: float) -> tuple[float, list[Sequence]] | None:
        """Steps in which everything that runs decodes and nothing is admitted."""
        running, shape, times = self.running, self.shape, self.times
        if not running or (self.waiting and len(running) < shape.sequences):
            return None
        count = shape.batch_tokens
        context = 0
        for sequence in running:
            if sequence.computed != sequence.ask.prompt_tokens + sequence.made - 1:
                return None
            count = min(count, sequence.output - sequence.made)
            context += sequence.computed
        rows = len(running)
        step_s = times.base_s + times.row_s * rows + times.context_s * (context + rows)
        growth_s = times.context_s * rows
        if until_s < count * step_s + growth_s * count * (count - 1) / 2:
            count = min(count, _steps(until_s, step_s, growth_s))
        free = shape.blocks - self._used
        if self._grown(count) > free:
            count = max(1, min(count, free * shape.block_tokens // rows))
            while count > 1 and self._grown(count) > free:
                count -= 1
            if self._grown(count) > free:
                return None
        seconds = count * step_s + growth_s * count * (count - 1) / 2
        self._used += self._grown(count)
        self._evict()
        for sequence in running:
            sequence.computed += count
            sequence.made += count
            sequence.held += count
            self._served(sequence, 0, count)
        return seconds, self._ended()

    def _grown(self, count: int) -> int:
        """Blocks that ``count`` more tokens of each need."""
        size = self.shape.block_tokens
        return sum(
            -(-(sequence.computed + count) // size) - -(-sequence.computed // size)
            for sequence in self.running
        )

    def _one(self) -> tuple[float, list[Sequence]]:
        budget = self.shape.batch_tokens
        chunks: list[tuple[Sequence, int]] = []
        preempted = False
        for sequence in list(self.running):
            if budget == 0:
                break
            if sequence not in self.running:
                continue
            stop = sequence.computed + min(sequence.tokens - sequence.computed, budget)
            fits, gave = self._make_room(sequence, stop)
            preempted = preempted or gave
            if fits:
                chunks.append((sequence, stop))
                budget -= stop - sequence.computed
        while budget and self.waiting and not preempted:
            sequence = self.waiting[0]
            if len(self.running) >= self.shape.sequences or not self._admit(sequence, budget):
                break
            stop = sequence.computed + min(sequence.tokens - sequence.computed, budget)
            self._hold(sequence, stop)
            chunks.append((sequence, stop))
            budget -= stop - sequence.computed
        return self._compute(chunks)

    def _compute(self, chunks: list[tuple[Sequence, int]]) -> tuple[float, list[Sequence]]:
        rows = context = prompt = 0
        pairs = 0.0
        for sequence, stop in chunks:
            size = stop - sequence.computed
            if size == 1:
                rows += 1
                context += stop
            else:
                prompt += size
                pairs += size * (sequence.computed + size / 2)
            if size > 1 or sequence.computed < sequence.ask.prompt_tokens:
                fresh = min(stop, sequence.ask.prompt_tokens) - sequence.reached
                self._served(sequence, max(0, fresh), 0)
            sequence.computed = stop
            sequence.held += 1
            sequence.reached = max(sequence.reached, stop)
            if stop == sequence.tokens:
                sequence.made += 1
                self._served(sequence, 0, 1)
        return self.times.seconds(StepWork(rows, context, prompt, pairs)), self._ended()

    def _ended(self) -> list[Sequence]:
        ended = [sequence for sequence in self.running if sequence.made >= sequence.output]
        for sequence in ended:
            self.running.remove(sequence)
            self._give_up(sequence)
        return ended

    def _admit(self, sequence: Sequence, budget: int) -> bool:
        kept = self._kept.pop(sequence, 0)
        self._kept_blocks -= kept
        # Its last token is computed again, so that there are logits.
        whole = min(sequence.tokens - 1, kept * self.shape.block_tokens)
        start = whole // self.shape.block_tokens * self.shape.block_tokens
        stop = start + min(sequence.tokens - start, budget)
        needed = -(-stop // self.shape.block_tokens)
        reserve = self._reserve if self.running else 0
        if self._used + needed + reserve > self.shape.blocks:
            if kept:
                self._kept[sequence] = kept
                self._kept_blocks += kept
            return False
        sequence.computed, sequence.held = start, 0
        self._used += -(-start // self.shape.block_tokens)
        self.waiting.pop(0)
        bisect.insort(self.running, sequence, key=_place)
        return True

    def _hold(self, sequence: Sequence, stop: int) -> None:
        size = self.shape.block_tokens
        self._used += -(-stop // size) - -(-sequence.computed // size)
        self._evict()

    def _make_room(self, sequence: Sequence, stop: int) -> tuple[bool, bool]:
        """Whether ``sequence`` may go on to ``stop``, and whether any gave way to it."""
        size = self.shape.block_tokens
        gave = False
        while True:
            needed = -(-stop // size) - -(-sequence.computed // size)
            if self._used + needed <= self.shape.blocks:
                self._used += needed
                self._evict()
                return True, gave
            gave = True
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False, gave

    def _preempt(self, victim: Sequence) -> None:
        self.running.remove(victim)
        self._give_up(victim)
        victim.computed = 0
        bisect.insort(self.waiting, victim, key=_place)
        self.preemptions += 1

    def _give_up(self, sequence: Sequence) -> None:
        """Its whole blocks stay as long as nobody needs them."""
        size = self.shape.block_tokens
        self._used -= -(-sequence.computed // size)
        kept = sequence.computed // size
        if kept:
            self._kept[sequence] = kept
            self._kept_blocks += kept
        self._evict()

    def _evict(self) -> None:
        excess = self._used + self._kept_blocks - self.shape.blocks
        while excess > 0:
            sequence, kept = next(iter(self._kept.items()))
            gone = min(kept, excess)
            self._kept_blocks -= gone
            excess -= gone
            if gone == kept:
                del self._kept[sequence]
            else:
                self._kept[sequence] = kept - gone


def _place(sequence: Sequence) -> Place:
    return sequence.place


def _steps(until_s: float, step_s: float, growth_s: float) -> int:
    """The fewest steps, the first of ``step_s`` and each longer by ``growth_s``, that take
    ``until_s`` or more."""
    if growth_s * until_s < 1e-12 * step_s * step_s:
        return max(1, math.ceil(until_s / step_s))
    linear = step_s - growth_s / 2
    root = math.sqrt(linear * linear + 2 * growth_s * until_s)
    return max(1, math.ceil((root - linear) / growth_s))
