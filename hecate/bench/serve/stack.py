"""What the whole stack costs: the engine by itself against the same engine behind ``hecate serve``.

Both live at once and take turns. The load generator runs here, in the measuring process, and what
it uses of the processors is told apart.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from hecate.bench.serve.command import STOP_S, serving
from hecate.bench.serve.contender import Contender, ContenderFailed
from hecate.bench.serve.sides import Setting
from serving.bench.arrivals import Asked, as_json, closed
from serving.bench.open_loop import replay
from serving.bench.senders import to_server
from serving.bench.timings import Timing

Say = Callable[[str], None]
LOW_LOAD_GAP_S = 0.3


@dataclass(frozen=True)
class Stack:
    """Engine alone and behind the stack: ``rates`` in tokens a second at a batch, by round;
    ``first_s`` of single requests. ``client_cores``: what the load generator used of a core."""

    batch: int
    alone: tuple[float, ...]
    behind: tuple[float, ...]
    client_cores: float


@dataclass(frozen=True)
class FirstToken:
    """Seconds to the first token at low load, medians."""

    alone_s: float
    behind_s: float


@contextmanager
def hecate_serve(setting: Setting, folder: Path) -> Iterator[str]:
    """The app by its own command; the address, once it answers."""
    engine = setting.engine
    values = {
        "engine.name": engine.name,
        "engine.dtype": engine.dtype,
        "engine.device": engine.device,
        "engine.threads": engine.threads,
        "engine.max_tokens": engine.max_tokens,
        "engine.max_waiting": engine.max_waiting,
        "engine.memory.kv_gib": engine.memory.kv_gib,
        "engine.lora.slots": engine.lora.slots,
        "engine.scheduling.max_sequences": engine.scheduling.max_sequences,
    }
    with serving(setting.folder, values, folder) as served:
        yield served.url


def measure_stack(
    engine: Contender,
    url: str,
    vocabulary: int,
    *,
    batches: Sequence[int],
    rounds: int,
    singles: int,
    say: Say,
) -> tuple[list[Stack], FirstToken]:
    """Batches at once, 128 tokens in and 64 out, then single requests with pauses between."""
    stacks = []
    for batch in batches:
        alone, behind, cores = [], [], []
        for seed in range(-1, rounds):
            asked = closed(batch, 128, 64, vocabulary=vocabulary, seed=30_000 + seed)
            order = {"do": "replay", "asked": as_json(asked)}
            alone_s = float(engine.ask(order, timeout_s=STOP_S * 20)["seconds"])
            again = closed(batch, 128, 64, vocabulary=vocabulary, seed=40_000 + seed)
            timings, behind_s, cpu_s = asyncio.run(over_http(again, url))
            _require_whole(timings)
            if seed >= 0:
                alone.append(batch * 64 / alone_s)
                behind.append(batch * 64 / behind_s)
                cores.append(cpu_s / behind_s)
        stack = Stack(batch, tuple(alone), tuple(behind), statistics.median(cores))
        say(f"batch {batch}: {max(alone):,.0f} tokens/s alone, {max(behind):,.0f} behind the stack")
        stacks.append(stack)
    alone_first, behind_first = [], []
    for seed in range(singles):
        asked = closed(1, 128, 8, vocabulary=vocabulary, seed=50_000 + seed)
        order = {"do": "replay", "asked": as_json(asked)}
        alone_first.append(float(engine.ask(order, timeout_s=STOP_S)["timings"][0]["first_s"]))
    gaps = [
        Asked(LOW_LOAD_GAP_S * seed, one.prompt, 8)
        for seed in range(singles)
        for one in closed(1, 128, 8, vocabulary=vocabulary, seed=60_000 + seed)
    ]
    timings, _, _ = asyncio.run(over_http(gaps, url))
    _require_whole(timings)
    behind_first = [timing.first_s for timing in timings]
    first = FirstToken(statistics.median(alone_first), statistics.median(behind_first))
    say(f"first token: {first.alone_s * 1e3:.1f} ms alone, {first.behind_s * 1e3:.1f} behind")
    return stacks, first


async def over_http(asked: Sequence[Asked], url: str) -> tuple[list[Timing], float, float]:
    """Timings, seconds in all, and seconds of processor that sending and reading took."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began_s, cpu_s = time.perf_counter(), time.process_time()
        timings = await replay(asked, to_server(session, url, "bench"))
        return timings, time.perf_counter() - began_s, time.process_time() - cpu_s


def _require_whole(timings: Sequence[Timing]) -> None:
    if wrong := [timing.error for timing in timings if timing.error]:
        raise ContenderFailed("a request through hecate serve failed", got=wrong[0])
