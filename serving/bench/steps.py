"""How long an engine's steps take, measured: the linear models of CaraServe (2401.11240, section 5)
that rank-aware placement goes by.

Random adapters of several ranks, prompts of random tokens, batches of several sizes. Each is
measured a few times, and the median counts.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hecate.errors import ConfigError
from serving.bench.adapters import write_adapters
from serving.engine.build import build_engine
from serving.engine.config import EngineConfig
from serving.engine.protocol import Engine
from serving.errors import EngineDead
from serving.lora.profile import Fits, Profile
from serving.lora.slots import slot_class
from serving.lora.step_model import (
    Fit,
    Sample,
    StepModel,
    decode_features,
    fit,
    prefill_features,
)
from serving.request import Finish, Request, Sampling

RANKS = (8, 16, 32, 64, 128, 256)
ROWS = (1, 2, 4, 8, 16, 32)
PROMPTS = (16, 64, 128, 256, 512)
SHORT = 16  # tokens of a prompt that is there to be decoded after
STEPS = 12
ROUNDS = 3
NO_READING = Fit((0.0, 0.0), 1.0)
COLD = 4  # adapters of each rank that are loaded

Say = Callable[[str], None]


async def profile(config: EngineConfig, say: Say) -> Profile:
    """Measure an engine of ``config``, which has slots for adapters.

    Raises ``ConfigError`` where it has none, and what engines raise.
    """
    lora = config.lora
    if not lora.slots:
        raise ConfigError(
            "there is nothing to profile without adapters",
            got="engine.lora.slots 0",
            fix="set engine.lora.slots as hecate serve will have it",
        )
    ranks = [rank for rank in RANKS if rank <= lora.max_rank] or [lora.max_rank]
    # Enough for one of each rank at once, and nothing that a folder brings.
    together = sum(map(slot_class, ranks))
    slots = max(lora.slots, -(-together // slot_class(lora.max_rank)))
    config = config.model_copy(
        update={"lora": lora.model_copy(update={"slots": slots, "folder": ""})}
    )
    with tempfile.TemporaryDirectory() as name:
        folders = write_adapters(Path(config.model), ranks * (1 + 2 * COLD), Path(name))
        every = len(ranks)
        async with _started(config) as timed:
            by_rank = {0: "", **dict(zip(ranks, await timed.take(folders[:every]), strict=True))}
            say(f"decode steps of up to {max(timed.rows)} answers")
            batches = [await timed.decode(batch, by_rank) for batch in _batches(ranks, timed.rows)]
            say(f"prompts of up to {max(timed.prompts)} tokens")
            prompts = [
                await timed.prefill(each, by_rank) for each in _prompts(ranks, timed.prompts)
            ]
            say("adapters that are loaded")
            cold = await timed.loads(folders[every : every * (1 + COLD)], ranks)
            facts = timed.facts
        read: list[tuple[int, float]] = []
        if config.kind == "native":  # vLLM keeps nothing that is not on the device
            unkept = config.lora.model_copy(update={"host_cache_mib": 0})
            async with _started(config.model_copy(update={"lora": unkept})) as timed:
                read = await timed.loads(folders[every * (1 + COLD) :], ranks)
    steps, fits = step_model(batches, prompts, cold, read)
    return Profile(
        model=facts.model,
        digest=facts.digest,
        device=config.device,
        dtype=config.dtype,
        threads=config.threads,
        steps=steps,
        r2=fits,
    )


Batch = tuple[int, ...]
"""The ranks of its rows."""
Prompts = tuple[tuple[int, int], ...]
"""Tokens and rank of each."""


def step_model(
    batches: Sequence[tuple[Batch, float]],
    prompts: Sequence[tuple[Prompts, float]],
    cold: Sequence[tuple[int, float]],
    read: Sequence[tuple[int, float]],
) -> tuple[StepModel, Fits]:
    """The model of what was measured, in seconds. ``cold`` and ``read``: rank, and until it was
    there from the host, or from disk by way of the host. Decode steps are fitted both ways, padded
    and not, and the better one is taken."""
    decode: dict[bool, Fit] = {
        padded: fit([(decode_features(batch, padded=padded), s) for batch, s in batches])
        for padded in (False, True)
    }
    padded = decode[True].r2 > decode[False].r2
    prefill = fit([(prefill_features(each), s) for each, s in prompts])
    load = fit([_by_rank(rank, s) for rank, s in cold])
    row_base_s, row_s, row_rank_s = decode[padded].weights
    prompt_base_s, token_s, token_rank_s = prefill.weights
    load_base_s, load_rank_s = load.weights
    more = [(rank, s - load_base_s - load_rank_s * rank) for rank, s in read]
    reading = fit([_by_rank(rank, max(0.0, s)) for rank, s in more]) if more else NO_READING
    read_base_s, read_rank_s = reading.weights
    steps = StepModel(
        decode_base_s=row_base_s,
        decode_row_s=row_s,
        decode_rank_s=row_rank_s,
        prefill_base_s=prompt_base_s,
        prefill_token_s=token_s,
        prefill_token_rank_s=token_rank_s,
        load_base_s=load_base_s,
        load_rank_s=load_rank_s,
        read_base_s=read_base_s,
        read_rank_s=read_rank_s,
        padded=padded,
    )
    return steps, Fits(decode=decode[padded].r2, prefill=prefill.r2, load=load.r2, read=reading.r2)


def _by_rank(rank: int, seconds: float) -> Sample:
    return (1.0, float(rank)), seconds


def _batches(ranks: Sequence[int], rows: Sequence[int]) -> list[Batch]:
    """Of one rank, of none, and, to tell padded from unpadded, mostly small ones and one large."""
    alike = [(rank,) * count for rank in (0, *ranks) for count in rows]
    mixed = [(ranks[0],) * (count - 1) + (ranks[-1],) for count in rows if count > 1]
    every = [tuple(ranks[at % len(ranks)] for at in range(count)) for count in rows if count > 2]
    return [*alike, *mixed, *every]


def _prompts(ranks: Sequence[int], lengths: Sequence[int]) -> list[Prompts]:
    some = (0, ranks[0], ranks[-1])
    alone: list[Prompts] = [((length, rank),) for length in lengths for rank in some]
    short = lengths[: len(lengths) // 2 + 1]
    return alone + [((length, rank),) * 2 for length in short for rank in some]


@asynccontextmanager
async def _started(config: EngineConfig) -> AsyncIterator[_Timed]:
    engine = build_engine(config)
    await engine.start()
    try:
        timed = _Timed(engine, config)
        await timed.first([(SHORT, "")])  # what only the first step ever does
        yield timed
    finally:
        await engine.close()


@dataclass(frozen=True)
class _Stamp:
    """A step that made something: when, and for how many answers."""

    at_s: float
    answers: int


class _Timed:
    """An engine with nothing else to do."""

    def __init__(self, engine: Engine, config: EngineConfig) -> None:
        self._engine = engine
        self.facts = facts = engine.facts
        most = facts.max_sequences
        memory = engine.load().blocks_total * config.memory.block_tokens
        self.rows = [rows for rows in ROWS if rows <= min(most, memory // (SHORT + STEPS + 16))]
        self.prompts = [n for n in PROMPTS if 2 * n + 2 <= min(2 * facts.max_tokens, memory)]
        if not self.rows or not self.prompts:
            raise ConfigError(
                "the engine has no room to be profiled",
                got=f"{memory} tokens of keys and values, {facts.max_tokens} of a request",
                expected="some hundreds of each",
                fix="raise engine.memory.kv_gib or engine.max_tokens",
            )
        self._rng = random.Random(0)
        self._asked = self._taken = 0

    async def take(self, folders: Sequence[Path]) -> list[str]:
        """Names of the adapters in ``folders``, which are on the device then."""
        names = [await self._named(folder) for folder in folders]
        for name in names:
            await self.first([(SHORT, name)])
        return names

    async def decode(self, ranks: Batch, by_rank: dict[int, str]) -> tuple[Batch, float]:
        """The median step in which a row of each rank gets a token."""
        asked = [(SHORT, by_rank[rank]) for rank in ranks]
        steps = await self._steps(asked, STEPS)
        whole = [each.at_s for each in steps if each.answers == len(ranks)]
        return ranks, statistics.median(later - early for early, later in pairwise(whole))

    async def prefill(self, prompts: Prompts, by_rank: dict[int, str]) -> tuple[Prompts, float]:
        """Until all of them have their first token."""
        asked = [(tokens, by_rank[rank]) for tokens, rank in prompts]
        return prompts, statistics.median([await self.first(asked) for _ in range(ROUNDS)])

    async def loads(self, folders: Sequence[Path], ranks: Sequence[int]) -> list[tuple[int, float]]:
        """By how much later the first token comes of an adapter that has to be loaded; ``ranks``:
        of the folders, in turn."""
        found = []
        for number, folder in enumerate(folders):
            name = await self._named(folder)
            cold_s = await self.first([(SHORT, name)])
            warm_s = statistics.median([await self.first([(SHORT, name)]) for _ in range(ROUNDS)])
            found.append((ranks[number % len(ranks)], max(0.0, cold_s - warm_s)))
        return found

    async def first(self, asked: Sequence[tuple[int, str]]) -> float:
        """Seconds until the last of these (tokens, adapter) has its first token."""
        begun_s = time.perf_counter()
        return (await self._steps(asked, 1))[-1].at_s - begun_s

    async def _named(self, folder: Path) -> str:
        self._taken += 1
        name = f"{self._taken}"
        await self._engine.load_adapter(name, str(folder))
        return name

    async def _steps(self, asked: Sequence[tuple[int, str]], tokens: int) -> list[_Stamp]:
        """Every step until each of these has that many tokens."""
        for count, adapter in asked:
            self._asked += 1
            prompt = tuple(self._rng.randrange(self.facts.vocab_size) for _ in range(count))
            sampling = Sampling(tokens, temperature=0.0, ignore_eos=True)
            await self._engine.submit(Request(f"{self._asked}", prompt, sampling, adapter=adapter))
        stamps: list[_Stamp] = []
        left = len(asked)
        async for deltas in self._engine.steps():
            stamps.append(_Stamp(time.perf_counter(), len(deltas)))
            for delta in deltas:
                if delta.finish is Finish.FAILED:
                    raise EngineDead("a request failed while profiling", got=delta.error)
                left -= delta.finish is not None
            if not left:
                break
        return stamps
