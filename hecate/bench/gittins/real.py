"""The native engine in this process: how long its steps take, and applications on it."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from hecate.bench.gittins.steps import StepWork
from hecate.bench.gittins.workload import Job
from serving.api import Answerer, Dispatcher
from serving.applications.config import ApplicationsConfig
from serving.applications.queue import Queue
from serving.bench.arrivals import random_prompt
from serving.engine.build import build_engine
from serving.engine.config import EngineConfig, MemoryConfig
from serving.engine.protocol import Engine
from serving.lora.config import LoraConfig
from serving.request import Finish, Request, Sampling
from serving.scheduling.applications.book import Book
from serving.scheduling.applications.classes import ClassHistory
from serving.scheduling.applications.config import HistoryConfig
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.order import Order
from serving.scheduling.applications.policies import POLICIES
from serving.scheduling.applications.policies.config import OrderConfig
from serving.scheduling.applications.tags import Tags
from serving.scheduling.applications.traces import UnitRun
from serving.scheduling.config import SchedulingConfig

ROWS = (1, 2, 4, 8)
PROMPTS = (16, 64, 256, 512)
GAPS = 24  # steps whose median is one measurement
TICK_S = 0.1


@asynccontextmanager
async def engine_of(folder: Path, dtype: str, sequences: int) -> AsyncIterator[Engine]:
    """One that has started, on one thread: the other core is this process's own."""
    engine = build_engine(
        EngineConfig(
            model=str(folder),
            dtype=dtype,
            device="cpu",
            threads=1,
            max_waiting=100_000,
            memory=MemoryConfig(kv_gib=0.5),
            scheduling=SchedulingConfig(max_sequences=sequences),
            lora=LoraConfig(slots=0),
        )
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


class Meter:
    """Times steps of ``engine``, which has nothing else to do."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._numbers = itertools.count()

    async def steps(self, rounds: int) -> list[tuple[StepWork, float]]:
        """Steps of many kinds, and their seconds."""
        kinds = [(rows, prompt) for prompt in PROMPTS for rows in (*ROWS, 0)]
        found = []
        for _ in range(rounds):
            for rows, prompt in kinds:
                found.append(await (self._decoding(rows, prompt) if rows else self._prompt(prompt)))
        return found

    async def _decoding(self, rows: int, prompt: int) -> tuple[StepWork, float]:
        beginning = rows * prompt // 256 + 2  # steps in which not all are there
        for _ in range(rows):
            await self._engine.submit(self._request(prompt, beginning + GAPS))
        stamps: list[float] = []
        left = rows
        async for deltas in self._engine.steps():
            if len(deltas) == rows:
                stamps.append(time.perf_counter())
            left -= sum(delta.finish is not None for delta in deltas)
            if not left:
                break
        gaps = [after - before for before, after in zip(stamps, stamps[1:], strict=False)]
        context = rows * (prompt + beginning + GAPS // 2)
        return StepWork(rows, context, 0, 0.0), statistics.median(gaps)

    async def _prompt(self, prompt: int) -> tuple[StepWork, float]:
        seconds = []
        for _ in range(3):
            begun_s = time.perf_counter()
            await self._engine.submit(self._request(prompt, 1))
            async for deltas in self._engine.steps():
                if any(delta.finish is not None for delta in deltas):
                    break
            seconds.append(time.perf_counter() - begun_s)
        return StepWork(0, 0, prompt, prompt * prompt / 2), statistics.median(seconds)

    def _request(self, prompt: int, output: int) -> Request:
        return _request(self._engine, f"meter-{next(self._numbers)}", prompt, output)


async def serve(
    engine: Engine,
    jobs: Sequence[Job],
    policy: str,
    history: tuple[ClassHistory, ...],
    rates: Rates,
    order: OrderConfig,
) -> list[float]:
    """How long each of ``jobs`` takes: straight to the engine where ``policy`` is empty, else
    through the queue of an ingress."""
    clock = asyncio.get_running_loop().time
    dispatcher = Dispatcher(engine)
    config = ApplicationsConfig(order=order, ahead=0, max_waiting=100_000)
    book = Book(HistoryConfig(), lambda: rates)
    book.restore(history)
    queue = None
    if policy:
        order_of = Order(POLICIES[policy](book), order)
        queue = Queue(dispatcher, book, order_of, config, lambda: rates, clock)
    background = [asyncio.ensure_future(dispatcher.run())]
    if queue is not None:
        background.append(asyncio.ensure_future(_ticking(queue)))
    try:
        begun_s = clock()
        return list(
            await asyncio.gather(
                *(_one(engine, job, begun_s, dispatcher, queue, book) for job in jobs)
            )
        )
    finally:
        for task in background:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _ticking(queue: Queue) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        queue.tick()


async def _one(
    engine: Engine,
    job: Job,
    begun_s: float,
    dispatcher: Dispatcher,
    queue: Queue | None,
    book: Book,
) -> float:
    clock = asyncio.get_running_loop().time
    due_s = begun_s + job.at_s
    await asyncio.sleep(due_s - clock())
    live = None
    for position, run in enumerate(job.plan.runs):
        tags = Tags(job.name, job.instance, run.unit, run.kind)
        if not run.calls:
            live = book.begin(tags, job.tenant, clock())
            book.unit_started(live, run.unit, run.kind, clock())
            await asyncio.sleep(run.seconds)
            book.unit_ended(live, run.unit, clock())
            continue
        answerer: Answerer = dispatcher if queue is None else queue.tagged(tags)
        await _calls(engine, answerer, f"{job.instance}-{position}", run)
    ended_s = clock()
    if queue is not None and (live := book.live(Tags(job.name, job.instance), job.tenant)):
        book.end(live, ended_s)
    return ended_s - due_s


async def _calls(engine: Engine, answerer: Answerer, name: str, run: UnitRun) -> None:
    """The calls of a unit, side by side."""

    async def one(number: int, prompt: int, output: int) -> None:
        request = _request(engine, f"{name}-{number}", prompt, output)
        async for delta in await answerer.open(request):
            if delta.finish in (Finish.FAILED, Finish.CANCELLED):
                raise RuntimeError(delta.error or "cancelled")

    await asyncio.gather(
        *(
            one(number, call.prompt_tokens, call.output_tokens)
            for number, call in enumerate(run.calls)
        )
    )


def _request(engine: Engine, name: str, prompt: int, output: int) -> Request:
    """A prompt like no other's, and an answer of just that length."""
    rng = random.Random(name)
    tokens = random_prompt(rng, prompt, engine.facts.vocab_size)
    return Request(name, tokens, Sampling(output, temperature=0.0, ignore_eos=True))
