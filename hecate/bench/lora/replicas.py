"""Placement over real replicas: two of ``hecate serve`` on this machine, of one thread each."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from hecate.bench.lora.placed import Placed
from hecate.bench.lora.workload import Ask
from hecate.bench.serve.command import serving
from hecate.bench.serve.contender import ContenderFailed
from serving.bench.arrivals import Asked, random_prompt
from serving.bench.open_loop import replay
from serving.bench.senders import to_server
from serving.bench.timings import Timing
from serving.engine.config import EngineConfig
from serving.lora.profile import Profile, write_profile

REPLICAS = 2
NAME = "bench"
WARM_UP = 4  # requests without adapter, so that no policy meets what only the first steps do


@dataclass(frozen=True)
class Site:
    """What is served: ``engine`` in each replica, adapters in the folders of ``adapters``, called
    by their numbers."""

    engine: EngineConfig
    adapters: Path
    profile: Profile
    vocabulary: int


def serve(
    asks: Sequence[Ask],
    policy: str,
    site: Site,
    folder: Path,
    *,
    prompt: int,
    answer: int,
    slo_s: float,
) -> Placed:
    """What ``place`` says of ``asks``, measured; replicas start with no adapter on the device."""
    steps = folder / "steps.json"
    write_profile(site.profile, steps)
    engine = site.engine
    values: dict[str, object] = {
        "engine.name": NAME,
        "engine.dtype": engine.dtype,
        "engine.device": engine.device,
        "engine.threads": engine.threads,
        "engine.max_waiting": engine.max_waiting,
        "engine.memory.kv_gib": engine.memory.kv_gib,
        "engine.memory.prefix": engine.memory.prefix,
        "engine.scheduling.max_sequences": engine.scheduling.max_sequences,
        "engine.lora.slots": engine.lora.slots,
        "engine.lora.host_cache_mib": engine.lora.host_cache_mib,
        "engine.lora.cold": engine.lora.cold,
        "engine.lora.throttle_ms": engine.lora.throttle_ms,
        "engine.lora.folder": str(site.adapters),
        "replicas.min": REPLICAS,
        "replicas.max": REPLICAS,
        "replicas.placement": policy,
    }
    if policy == "rank_aware":
        values |= {"replicas.step_model": str(steps), "replicas.token_slo_s": slo_s}
    rng = random.Random(0)
    warm_up = [Asked(0.0, random_prompt(rng, prompt, site.vocabulary), answer)] * WARM_UP
    asked = [
        Asked(
            ask.at_s,
            random_prompt(rng, prompt, site.vocabulary),
            answer,
            "" if ask.adapter < 0 else f"{ask.adapter}",
        )
        for ask in asks
    ]
    with serving(Path(engine.model), values, folder) as served:
        asyncio.run(_send(warm_up, served.url))
        timings, cold = asyncio.run(_send(asked, served.url))
    each = [timing.last_s / answer for timing in timings]
    return Placed(
        sum(s <= slo_s for s in each) / len(each), sum(each) / len(each), cold / len(each)
    )


async def _send(asked: Sequence[Asked], url: str) -> tuple[list[Timing], float]:
    """Timings, and how many adapters were loaded meanwhile."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        before = await _loads(session, url)
        timings = await replay(asked, to_server(session, url, NAME))
        if wrong := [timing.error for timing in timings if timing.error]:
            raise ContenderFailed("a request through hecate serve failed", got=wrong[0])
        return timings, await _loads(session, url) - before


async def _loads(session: aiohttp.ClientSession, url: str) -> float:
    """Adapters that all replicas have loaded so far."""
    async with session.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    name = "hecate_engine_adapter_loads_total{"
    return sum(float(line.split()[1]) for line in lines if line.startswith(name))
