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
        alone_rates, behind_rates, cores = [], [], []
        for seed in range(-1, rounds):
            asked = closed(batch, 128, 64, vocabulary=vocabulary, seed=30_000 + seed)
            order = {"do": "replay", "asked": as_json(asked)}
            alone_s = float(engine.ask(order, timeout_s=STOP_S * 20)["seconds"])
            again = closed(batch, 128, 64, vocabulary=vocabulary, seed=40_000 + seed)
            timings, behind_s, cpu_s = asyncio.run(over_http(again, url))
            _require_whole(timings)
            if seed >= 0:
                alone_rates.append(batch * 64 / alone_s)
                behind_rates.append(batch * 64 / behind_s)
                cores.append(cpu_s / behind_s)
        stack = Stack(batch, tuple(alone_rates), tuple(behind_rates), statistics.median(cores))
        say(
            f"batch {batch}: {max(alone_rates):,.0f} tokens/s alone, "
            f"{max(behind_rates):,.0f} behind the stack"
        )
        stacks.append(stack)
    order = {"do": "replay", "asked": as_json(_single_requests(singles, vocabulary, seed=50_000))}
    alone = engine.ask(order, timeout_s=STOP_S + 2 * LOW_LOAD_GAP_S * singles)["timings"]
    asked = _single_requests(singles, vocabulary, seed=60_000)
    timings, _, _ = asyncio.run(over_http(asked, url))
    _require_whole(timings)
    first = FirstToken(
        statistics.median(float(timing["first_s"]) for timing in alone),
        statistics.median(timing.first_s for timing in timings),
    )
    say(f"first token: {first.alone_s * 1e3:.1f} ms alone, {first.behind_s * 1e3:.1f} behind")
    return stacks, first


def _single_requests(count: int, vocabulary: int, *, seed: int) -> list[Asked]:
    """One at a time, with pauses in which a machine falls asleep, on either side of the stack."""
    return [
        Asked(LOW_LOAD_GAP_S * number, one.prompt, 8)
        for number in range(count)
        for one in closed(1, 128, 8, vocabulary=vocabulary, seed=seed + number)
    ]


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
