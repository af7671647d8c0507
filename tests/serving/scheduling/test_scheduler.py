from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.caches.prefix import NoPrefix, RadixPrefix
from serving.memory.blocks import BlockPool
from serving.request import Request, Sampling
from serving.scheduling.config import SchedulingConfig
from serving.scheduling.decisions import Chunk, ScheduleDecision
from serving.scheduling.scheduler import Scheduler


def _scheduler(blocks: int, *, prefix: bool = False, **config: object) -> Scheduler:
    pool = BlockPool(blocks, 4)
    cache = RadixPrefix(pool) if prefix else NoPrefix(pool)
    return Scheduler(SchedulingConfig.model_validate(config), pool, cache)


def _request(name: str, length: int, max_tokens: int = 4, **more: object) -> Request:
    start = 100 * ord(name[0])
    prompt = tuple(range(start, start + length))
    return Request(name, prompt, Sampling(max_tokens), **more)  # type: ignore[arg-type]


def _step(scheduler: Scheduler) -> ScheduleDecision:
    """One step, in which every sequence that samples gets token 7 and ends at ``max_tokens``."""
    decision = scheduler.schedule()
    sequences = [scheduler.sequences[c.sequence_id] for c in decision.chunks if c.samples]
    scheduler.commit(decision)
    for sequence in sequences:
        for each in (sequence, *scheduler.fork(sequence)):
            each.tokens.append(7)
            if each.generated >= each.request.sampling.max_tokens:
                scheduler.remove(each)
    return decision


def test_a_long_prompt_goes_in_chunks_beside_decoding() -> None:
    scheduler = _scheduler(32, max_batch_tokens=8)
    scheduler.add(_request("a", 3), b"")
    scheduler.add(_request("b", 14), b"")
    # Five of b beside a's prompt; then a's next token first, and seven of b; then what is left.
    assert _step(scheduler).chunks == (Chunk(0, 0, 3, True), Chunk(1, 0, 5, False))
    assert _step(scheduler).chunks == (Chunk(0, 3, 4, True), Chunk(1, 5, 12, False))
    assert _step(scheduler).chunks == (Chunk(0, 4, 5, True), Chunk(1, 12, 14, True))
    assert _step(scheduler).chunks == (Chunk(0, 5, 6, True), Chunk(1, 14, 15, True))
    assert _step(scheduler).chunks == (Chunk(1, 15, 16, True),)


def test_the_least_urgent_gives_its_blocks_and_is_computed_again() -> None:
    scheduler = _scheduler(4, max_batch_tokens=64, watermark=0)
    scheduler.add(_request("a", 7), b"")
    scheduler.add(_request("b", 8), b"")
    assert _step(scheduler).admitted == (0, 1)
    # a's first token takes the last place of its block; b's needs a third block, and none is free.
    decision = _step(scheduler)
    assert decision.preempted == (1,) and decision.chunks == (Chunk(0, 7, 8, True),)
    assert _step(scheduler).chunks == (Chunk(0, 8, 9, True),)
    assert _step(scheduler).chunks == (Chunk(0, 9, 10, True),)
    assert _step(scheduler).chunks == (Chunk(1, 0, 9, True),)  # its prompt and its first token
    assert scheduler.preemption.preemptions_total == 1


def test_priority_goes_before_arrival_and_arrival_before_order() -> None:
    scheduler = _scheduler(8, max_sequences=1)
    scheduler.add(_request("a", 2, 1, arrival_s=5.0), b"")
    scheduler.add(_request("b", 2, 1, arrival_s=1.0), b"")
    scheduler.add(_request("c", 2, 1, arrival_s=9.0, priority=-1), b"")
    assert [_step(scheduler).admitted for _ in range(3)] == [(2,), (1,), (0,)]


def test_who_waits_and_is_more_urgent_takes_the_place_of_the_least_urgent() -> None:
    scheduler = _scheduler(32, max_sequences=2, overtaking=2, quantum_steps=2)
    scheduler.add(_request("a", 3, 9, priority=4), b"")
    scheduler.add(_request("b", 3, 9, priority=5), b"")
    assert _step(scheduler).admitted == (0, 1)
    scheduler.add(_request("c", 3, 9, priority=4), b"")
    scheduler.add(_request("d", 3, 9, priority=3), b"")
    assert _step(scheduler).preempted == ()  # they have just come
    decision = _step(scheduler)
    assert decision.preempted == (1,) and decision.admitted == (3,)
    assert {chunk.sequence_id for chunk in decision.chunks} == {0, 3}
    for _ in range(3):
        assert _step(scheduler).preempted == ()  # a is behind by one alone
    scheduler.prioritise({"b": 1, "x": 0})
    decision = _step(scheduler)
    assert decision.preempted == (0,) and decision.admitted == (1,)
    assert [s.request.request_id for s in scheduler.sequences.values()] == ["a", "b", "c", "d"]


def test_nobody_gives_way_where_it_would_not_help() -> None:
    scheduler = _scheduler(8, max_sequences=4, quantum_steps=1, watermark=0)
    scheduler.add(_request("a", 16, 9), b"")  # half of the memory
    scheduler.add(_request("b", 3, 5, priority=2), b"")
    _step(scheduler)
    scheduler.add(_request("c", 16, 3, priority=1), b"")
    while scheduler.sequences:  # what b holds is never enough for c, beside what a grows by
        assert _step(scheduler).preempted == ()


def test_the_memory_of_the_less_urgent_goes_to_the_more_urgent() -> None:
    scheduler = _scheduler(8, max_sequences=4, quantum_steps=1, watermark=0, max_batch_tokens=64)
    scheduler.add(_request("a", 12, 9), b"")
    scheduler.add(_request("b", 12, 9, priority=2), b"")
    _step(scheduler)
    scheduler.add(_request("c", 15, 1, priority=1), b"")
    decision = _step(scheduler)
    assert decision.preempted == (1,) and decision.admitted == (2,)
    assert Chunk(2, 0, 15, True) in decision.chunks
    assert _step(scheduler).preempted == ()


def test_a_long_prompt_under_way_leaves_its_tokens_to_who_is_more_urgent() -> None:
    scheduler = _scheduler(64, max_batch_tokens=8, quantum_steps=0)
    scheduler.add(_request("a", 100, 2, priority=1), b"")
    _step(scheduler)
    scheduler.add(_request("b", 5, 2), b"")
    assert _step(scheduler).chunks == (Chunk(1, 0, 5, True), Chunk(0, 8, 11, False))
    assert _step(scheduler).chunks == (Chunk(1, 5, 6, True), Chunk(0, 11, 18, False))
    scheduler.add(_request("c", 9, 2, priority=1), b"")  # not more urgent
    assert _step(scheduler).chunks == (Chunk(0, 18, 26, False),)


def test_with_overtaking_off_only_memory_preempts() -> None:
    scheduler = _scheduler(8, max_sequences=1, overtaking=0, quantum_steps=0)
    scheduler.add(_request("a", 3, 9, priority=5), b"")
    _step(scheduler)
    scheduler.add(_request("b", 3, 9), b"")
    assert _step(scheduler).preempted == ()


requests = st.lists(
    st.tuples(
        st.integers(1, 20),  # prompt
        st.integers(1, 12),  # answer
        st.integers(1, 3),  # n
        st.integers(0, 1),  # priority
        st.integers(0, 3),  # steps before the next comes
        st.integers(0, 3),  # its priority from then on
    ),
    max_size=10,
)


@settings(max_examples=80, deadline=None)
@given(requests, st.booleans(), st.integers(3, 40), st.integers(3, 6), st.integers(0, 2))
def test_everything_ends_and_nothing_is_lost(
    asked: list[tuple[int, int, int, int, int, int]],
    prefix: bool,
    budget: int,
    places: int,
    quantum: int,
) -> None:
    pool = BlockPool(10, 4)
    cache = RadixPrefix(pool) if prefix else NoPrefix(pool)
    config = SchedulingConfig(max_batch_tokens=budget, max_sequences=places, quantum_steps=quantum)
    scheduler = Scheduler(config, pool, cache)
    steps = 0

    def step() -> None:
        before = {i: s.computed for i, s in scheduler.sequences.items()}
        decision = _step(scheduler)
        assert decision.num_tokens <= budget
        assert scheduler.running <= places
        assert decision.chunks or not scheduler.sequences
        for chunk in decision.chunks:
            fresh = chunk.sequence_id in decision.admitted
            assert fresh or chunk.start == before[chunk.sequence_id]
        assert not set(decision.admitted) & set(decision.preempted)

    for number, (length, answer, n, priority, pause, later) in enumerate(asked):
        prompt = tuple(range(length))  # equal beginnings, for the cache
        request = Request(f"{number}", prompt, Sampling(answer), n=n, priority=priority)
        scheduler.add(request, b"")
        for _ in range(pause):
            step()
        scheduler.prioritise({f"{number}": later})
    while scheduler.sequences:
        step()
        steps += 1
        assert steps < 3000
    cache.evict(pool.total)
    assert pool.free == pool.total
