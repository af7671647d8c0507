"""Send requests when they are due, however many are still under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from serving.bench.arrivals import Asked
from serving.bench.timings import Timing

Send = Callable[[Asked], AsyncIterator[int]]
"""One request -> how many tokens came, each time that some came. May raise whatever fails."""


async def replay(asked: Sequence[Asked], send: Send) -> list[Timing]:
    """What became of each request, in order. Nothing waits for an earlier answer."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    return list(await asyncio.gather(*(_one(each, send, start_s + each.at_s) for each in asked)))


async def _one(asked: Asked, send: Send, due_s: float) -> Timing:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(due_s - loop.time())
    late_s = loop.time() - due_s
    first_s = last_s = 0.0
    tokens = 0
    try:
        async for count in send(asked):
            last_s = loop.time() - due_s
            first_s = first_s or last_s
            tokens += count
    except Exception as error:  # whatever it is, it is this request's alone
        return Timing(first_s, last_s, tokens, late_s, f"{type(error).__name__}: {error}")
    short = "" if tokens == asked.output_tokens else f"{tokens} of {asked.output_tokens} tokens"
    return Timing(first_s, last_s, tokens, late_s, short)
