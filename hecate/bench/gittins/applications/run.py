"""A mix of real applications on a server: when each came, and how long it took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openai

from hecate.bench.gittins.applications import TASKS
from hecate.bench.gittins.applications.corpus import documents_in, passages_of
from hecate.bench.gittins.applications.draws import SHAPE_OF, Draws
from hecate.bench.gittins.applications.protocol import Done, World
from hecate.bench.gittins.applications.search import Search
from hecate.bench.gittins.applications.served import ServedRun
from hecate.bench.gittins.workload import poisson
from serving.client import Application
from serving.sandbox import STARTERS, SandboxConfig, SandboxPool

_SAMPLE = "The quick brown fox jumps over the lazy dog, and nobody knows why. " * 4


@dataclass(frozen=True)
class Mix:
    """``counts``: instances of each application. ``rate``: of arrivals, a second. ``length``: what
    published lengths are multiplied by. ``corpus``: a path, or "" for the standard library."""

    counts: dict[str, int]
    rate: float
    length: float
    corpus: str = ""
    seed: int = 0
    sandboxes: int = 4


@dataclass(frozen=True)
class Ended:
    """An instance: ``seconds`` from its arrival to its end; ``error``: why it has no end."""

    name: str
    at_s: float
    seconds: float
    done: Done | None
    prompt_tokens: int
    output_tokens: int
    error: str = ""


async def run_mix(url: str, model: str, mix: Mix, *, api_key: str = "none") -> list[Ended]:
    """All instances, on the server at ``url``, in order of arrival."""
    rng = np.random.default_rng(mix.seed)
    names = [name for name, count in mix.counts.items() for _ in range(count)]
    order = [names[place] for place in rng.permutation(len(names))]
    times_s = poisson(rng, len(order), mix.rate)
    seeds = rng.integers(0, 2**31, len(order))
    config = SandboxConfig(most=mix.sandboxes, spare=1)
    pool = SandboxPool(config, STARTERS[config.kind](config), time.monotonic)
    pool.prepare(config.spare)
    documents = documents_in(mix.corpus)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0) as client:
        try:
            width = await chars_per_token(client, model)
            world = World(documents, Search(passages_of(documents)), pool, width)
            began_s = time.monotonic()
            applications = {name: Application(client, name) for name in mix.counts}
            instances = [
                _instance(applications[name], model, world, mix, int(seed), began_s + at_s)
                for name, at_s, seed in zip(order, times_s, seeds, strict=True)
            ]
            return list(await asyncio.gather(*instances))
        finally:
            await pool.close()


async def chars_per_token(client: openai.AsyncOpenAI, model: str) -> float:
    """Of ``model``, in English."""
    answer = await client.completions.create(model=model, prompt=_SAMPLE, max_tokens=1)
    assert answer.usage is not None
    return len(_SAMPLE) / answer.usage.prompt_tokens


async def _instance(
    application: Application[openai.AsyncOpenAI],
    model: str,
    world: World,
    mix: Mix,
    seed: int,
    due_s: float,
) -> Ended:
    await asyncio.sleep(due_s - time.monotonic())
    name = application.name
    draws = Draws(np.random.default_rng(seed), SHAPE_OF[name], mix.length)
    done, error = None, ""
    async with application.instance() as instance:
        run = ServedRun(instance, model)
        try:
            done = await TASKS[name](run, world, draws)
        except openai.OpenAIError as problem:
            error = f"{type(problem).__name__}: {problem}"
    seconds = time.monotonic() - due_s
    return Ended(name, due_s, seconds, done, run.prompt_tokens, run.output_tokens, error)


def mean_s(ended: Sequence[Ended]) -> float:
    """Of those that came to their end."""
    found = [each.seconds for each in ended if each.done is not None]
    return sum(found) / len(found)
