"""The simulated engine decides as the scheduler of the real one does."""

from __future__ import annotations

import random

import pytest

from hecate.bench.gittins.replica import EngineShape, Replica, Sequence
from hecate.bench.gittins.steps import StepTimes, StepWork, fit
from serving.caches.prefix import RadixPrefix
from serving.memory.blocks import BlockPool
from serving.request import Request, Sampling
from serving.scheduling.applications.live import Ask, ClassKey, Live
from serving.scheduling.applications.order import Place
from serving.scheduling.config import SchedulingConfig
from serving.scheduling.scheduler import Scheduler

UNIT = StepTimes(base_s=1.0, row_s=0.0, context_s=0.0, prompt_s=0.0, pair_s=0.0)
LIVE = Live(ClassKey("", "any"), "", 0.0)


def _workload(seed: int, count: int) -> list[tuple[int, Ask, int]]:
    """When each comes, in steps, what it asks for, and how urgent it is."""
    rng = random.Random(seed)
    found = []
    at = 0
    for number in range(count):
        at += rng.randrange(12)
        ask = Ask(str(number), number, float(at), rng.randrange(1, 150), rng.randrange(1, 60))
        found.append((at, ask, rng.randrange(3)))
    return found


def _real(work: list[tuple[int, Ask, int]], shape: EngineShape) -> tuple[dict[str, int], int]:
    """The step in which each ends, and how many gave way."""
    pool = BlockPool(shape.blocks, shape.block_tokens)
    config = SchedulingConfig(
        max_sequences=shape.sequences,
        max_batch_tokens=shape.batch_tokens,
        watermark=shape.watermark,
        overtaking=0,
    )
    scheduler = Scheduler(config, pool, RadixPrefix(pool))
    ended: dict[str, int] = {}
    waiting = list(work)
    step = 0
    while waiting or scheduler.sequences:
        while waiting and waiting[0][0] <= step:
            _, ask, priority = waiting.pop(0)
            start = 1000 * (ask.number + 1)
            prompt = tuple(range(start, start + ask.prompt_tokens))
            sampling = Sampling(ask.max_tokens)
            request = Request(ask.request_id, prompt, sampling, priority=priority)
            scheduler.add(request, b"")
        decision = scheduler.schedule()
        sampled = [scheduler.sequences[c.sequence_id] for c in decision.chunks if c.samples]
        scheduler.commit(decision)
        step += 1
        for sequence in sampled:
            sequence.tokens.append(1000 * (int(sequence.request.request_id) + 1) + 500)
            if sequence.generated >= sequence.request.sampling.max_tokens:
                scheduler.remove(sequence)
                ended[sequence.request.request_id] = step
    return ended, scheduler.preemption.preemptions_total


def _simulated(
    work: list[tuple[int, Ask, int]], shape: EngineShape, *, together: bool
) -> tuple[dict[str, int], int]:
    replica = Replica(shape, UNIT, lambda sequence, prompt, output: None)
    ended: dict[str, int] = {}
    waiting = list(work)
    now = 0
    while waiting or replica.waiting or replica.running:
        while waiting and waiting[0][0] <= now:
            _, ask, priority = waiting.pop(0)
            place = Place(False, float(priority), ask.number)
            replica.add(Sequence(LIVE, ask, ask.max_tokens, place))
        if not replica.waiting and not replica.running:
            now += 1
            continue
        until = (waiting[0][0] - now if waiting else 1e9) if together else 1.0
        seconds, done = replica.step(until)
        now += round(seconds)
        ended |= {sequence.ask.request_id: now for sequence in done}
    return ended, replica.preemptions


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("blocks", [2000, 60])
@pytest.mark.parametrize("together", [False, True])
def test_it_ends_each_request_in_the_step_in_which_the_scheduler_would(
    seed: int, blocks: int, together: bool
) -> None:
    shape = EngineShape(6, blocks, batch_tokens=64, block_tokens=4, watermark=0.05)
    work = _workload(seed, 40)
    ended, preemptions = _real(work, shape)
    assert (preemptions > 0) == (blocks == 60)
    assert _simulated(work, shape, together=together) == (ended, preemptions)


def test_times_of_steps_are_found_again() -> None:
    times = StepTimes(1e-3, 3e-4, 2e-7, 5e-5, 1e-8)
    works = [StepWork(rows, rows * 100, 0, 0.0) for rows in (1, 4, 16)]
    works += [StepWork(rows, rows * 900, 0, 0.0) for rows in (1, 4, 16)]
    works += [StepWork(0, 0, prompt, prompt**2 / 2) for prompt in (16, 128, 1024)]
    found = fit([(work, times.seconds(work)) for work in works])
    for work in works:
        assert found.seconds(work) == pytest.approx(times.seconds(work), rel=1e-9)
