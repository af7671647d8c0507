"""An engine in this process: everything at once, or as requests come."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hecate.bench.lora.workload import Ask
from serving.engine.build import build_engine
from serving.engine.config import EngineConfig, MemoryConfig
from serving.engine.protocol import Engine
from serving.lora.config import LoraConfig
from serving.request import Request, Sampling

BASE = -1


@dataclass(frozen=True)
class Job:
    """``prompt`` and ``answer``: tokens of each request."""

    model: Path
    adapters: Sequence[Path]
    prompt: int
    answer: int
    vocabulary: int
    dtype: str


@dataclass(frozen=True)
class Times:
    """Of one request, seconds since it came."""

    first_s: float
    whole_s: float


class Asked:
    """An engine of ``job`` with ``lora``, on one thread; to be started and closed."""

    def __init__(self, job: Job, lora: LoraConfig) -> None:
        self._job = job
        config = EngineConfig(
            model=str(job.model),
            dtype=job.dtype,
            device="cpu",
            threads=1,
            max_waiting=4096,
            memory=MemoryConfig(kv_gib=0.5, prefix="none"),
            lora=lora,
        )
        self._engine: Engine = build_engine(config)
        self._rng = random.Random(0)
        self._count = 0

    async def start(self) -> None:
        await self._engine.start()
        for number, folder in enumerate(self._job.adapters):
            await self._engine.load_adapter(f"{number}", str(folder))

    async def close(self) -> None:
        await self._engine.close()

    async def rate(self, adapters: Sequence[int]) -> float:
        """Output tokens a second of one request for each of ``adapters``, all at once."""
        begun_s = time.perf_counter()
        await self.times([Ask(0.0, adapter) for adapter in adapters])
        return len(adapters) * self._job.answer / (time.perf_counter() - begun_s)

    async def prompt_token_s(self) -> float:
        """Seconds that a token of a prompt takes, by the first token of requests alone."""
        alone_s = [(await self.times([Ask(0.0, BASE)]))[0].first_s for _ in range(3)]
        return statistics.median(alone_s) / self._job.prompt

    async def bring(self, adapters: Iterable[int]) -> None:
        """Have each of ``adapters`` on the device, where there is room."""
        brief = replace(self._job, prompt=1, answer=1)
        for adapter in adapters:
            await self._engine.submit(self._request(adapter, brief)[1])
            async for deltas in self._engine.steps():
                if any(delta.finish is not None for delta in deltas):
                    break

    async def times(self, asks: Sequence[Ask]) -> list[Times]:
        """Each request's, sent when it comes whatever became of those before."""
        came: dict[str, float] = {}
        first: dict[str, float] = {}
        done: dict[str, Times] = {}
        reading = asyncio.ensure_future(self._read(len(asks), came, first, done))
        begun_s = time.perf_counter()
        for ask in asks:
            await asyncio.sleep(max(0.0, begun_s + ask.at_s - time.perf_counter()))
            name, request = self._request(ask.adapter, self._job)
            came[name] = time.perf_counter()
            await self._engine.submit(request)
        await reading
        return [done[name] for name in came]

    async def _read(
        self, count: int, came: dict[str, float], first: dict[str, float], done: dict[str, Times]
    ) -> None:
        async for deltas in self._engine.steps():
            now_s = time.perf_counter()
            for delta in deltas:
                name = delta.request_id
                first.setdefault(name, now_s)
                if delta.finish is not None:
                    done[name] = Times(first[name] - came[name], now_s - came[name])
            if len(done) == count:
                return

    def _request(self, adapter: int, job: Job) -> tuple[str, Request]:
        self._count += 1
        name = f"r{self._count}"
        tokens = tuple(self._rng.randrange(16, job.vocabulary) for _ in range(job.prompt))
        sampling = Sampling(max_tokens=job.answer, temperature=0.0, ignore_eos=True)
        named = "" if adapter == BASE else f"{adapter}"
        return name, Request(name, tokens, sampling, adapter=named)
