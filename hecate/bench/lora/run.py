"""``hecate bench lora``: adapters beside the base, cold beside resident, placement."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hecate.bench.lora.engines import BASE, Asked, Job, Times
from hecate.bench.lora.placement import measure_placement
from hecate.bench.lora.workload import arrivals, brief_prompt, popularity, rank_of
from hecate.bench.report import BenchOptions, Report, Row
from hecate.bench.serve.models import MODELS, write_model
from serving.bench.adapters import write_adapters
from serving.lora.config import LoraConfig
from serving.lora.slots import slot_class

MODEL = "86m"
PROMPT, ANSWER = 128, 32
BRIEF_ANSWER = 4  # of the open loops, with brief prompts: a load is then no small part of an answer
WAYS = ("wait", "pipeline", "assist", "auto")
MAX_RANK = 64


@dataclass(frozen=True)
class Pace:
    """``requests``: of each open loop; ``load``: as a share of what the engine can do; ``slots``:
    in those in which adapters are cold. ``placed``: requests to simulated replicas, ``real`` to
    real ones."""

    adapters: int
    rounds: int
    batch: int
    requests: int
    load: float
    throttle_ms: float
    slots: int
    placed: int
    real: int


WHOLE = Pace(512, 3, 32, 192, 0.3, 80.0, 4, 6000, 192)
QUICK = Pace(32, 1, 8, 48, 0.3, 80.0, 2, 1000, 32)


def run_bench(options: BenchOptions) -> Report:
    """All of it, on one core for the engine and one for its host workers."""
    pace = QUICK if options.quick else WHOLE
    cores = sorted(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = MODELS[MODEL]
        base = write_model(model, folder, context=1024, dtype=torch.bfloat16)
        ranks = [rank_of(number) for number in range(pace.adapters)]
        adapters = write_adapters(base, ranks, folder / "adapters")
        job = Job(base, adapters, PROMPT, ANSWER, model.vocab_size, "bfloat16")
        os.sched_setaffinity(0, {cores[0]})
        try:
            report = asyncio.run(_measure(job, pace, cores[-1]))
        finally:
            os.sched_setaffinity(0, cores)
        placed = measure_placement(
            job,
            popularity(pace.adapters),
            folder,
            slots=pace.slots,
            throttle_ms=pace.throttle_ms,
            simulated=pace.placed,
            real=pace.real,
            say=lambda what: print(f"  {what}", file=sys.stderr, flush=True),
        )
        return replace(
            report,
            rows=(*report.rows, *placed.rows),
            summary={**report.summary, **placed.summary},
            notes=(*report.notes, *placed.notes),
        )


async def _measure(job: Job, pace: Pace, helper_core: int) -> Report:
    shares = popularity(pace.adapters)
    drawn = [ask.adapter for ask in arrivals(pace.batch, 1.0, shares, random.Random(1).random)]
    async with _resident(job, pace) as resident:
        ratios, base_rates, rates = [], [], []
        for _ in range(pace.rounds):
            base_rates.append(await resident.rate([BASE] * pace.batch))
            rates.append(await resident.rate(drawn))
            ratios.append(rates[-1] / base_rates[-1])
        prompt_token_s = await resident.prompt_token_s()
    rows: list[Row] = [
        {"what": "base, offline", "tokens_s": statistics.median(base_rates)},
        {
            "what": f"{len(set(drawn))} adapters, resident",
            "tokens_s": statistics.median(rates),
            "ratio": statistics.median(ratios),
        },
    ]
    prompt = brief_prompt(prompt_token_s, pace.throttle_ms / 1000)
    brief = replace(job, prompt=prompt, answer=BRIEF_ANSWER)
    async with _resident(brief, pace) as resident:
        capacity = await resident.rate(drawn) / brief.answer
        asks = arrivals(pace.requests, pace.load * capacity, shares, random.Random(2).random)
        warm = await resident.times(asks)
    warm_s = statistics.mean(each.whole_s for each in warm)
    rows.append(_latency("resident, open loop", warm, warm_s))
    means: dict[str, float] = {}
    for way in WAYS:
        cold = Asked(
            brief,
            LoraConfig(
                slots=pace.slots,
                host_cache_mib=4096,
                cold=way,
                host_workers=1,
                host_cores=(helper_core,),
                throttle_ms=pace.throttle_ms,
            ),
        )
        await cold.start()
        try:
            await cold.rate([BASE] * 2)
            times = await cold.times(asks)
        finally:
            await cold.close()
        means[way] = statistics.mean(each.whole_s for each in times)
        rows.append(_latency(f"cold, {way}", times, warm_s))
    return Report(
        "lora",
        {
            "model": MODEL,
            "adapters": pace.adapters,
            "ranks": [8, 16, 32, 64],
            "prompt": job.prompt,
            "answer": job.answer,
            "open_loop_prompt": brief.prompt,
            "open_loop_answer": brief.answer,
            "slots_when_cold": pace.slots,
            "throttle_ms": pace.throttle_ms,
            "load": pace.load,
        },
        {
            "what": "what",
            "tokens_s": "tok/s",
            "first_ms": "first token ms",
            "whole_ms": "answer ms",
            "ratio": "ratio",
            "cold": "loads",
            "attained": "SLO met",
        },
        tuple(rows),
        {
            "resident_vs_base": statistics.median(ratios),
            "cold_vs_resident": means["auto"] / warm_s,
            "load_then_run_vs_resident": means["wait"] / warm_s,
        },
        (
            f"the slow tier is a load that takes {pace.throttle_ms:.0f} ms at least; the fast one "
            "packed slots in the same memory: this machine has no device",
            "cold figures count only where load-then-run is 1.3 times slower than resident",
        ),
    )


@asynccontextmanager
async def _resident(job: Job, pace: Pace) -> AsyncIterator[Asked]:
    """An engine that has every adapter on the device."""
    rows = sum(slot_class(rank_of(number)) for number in range(pace.adapters))
    engine = Asked(job, LoraConfig(slots=-(-rows // MAX_RANK), host_cache_mib=4096))
    await engine.start()
    try:
        await engine.bring(range(pace.adapters))
        await engine.rate([BASE, 0])  # what only the first steps do
        yield engine
    finally:
        await engine.close()


def _latency(what: str, times: Sequence[Times], warm_s: float) -> Row:
    whole = [each.whole_s for each in times]
    first = [each.first_s for each in times]
    mean_s = statistics.mean(whole)
    return {
        "what": what,
        "first_ms": statistics.median(first) * 1000,
        "whole_ms": mean_s * 1000,
        "ratio": mean_s / warm_s,
    }
