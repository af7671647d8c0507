"""One request sent to an engine of this process, or to a server over HTTP."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator

import aiohttp

from serving.api import Dispatcher
from serving.bench.arrivals import Asked
from serving.bench.open_loop import Send
from serving.request import Finish, Request, Sampling


def to_engine(engine: Dispatcher) -> Send:
    """Greedy answers of just the length that is asked, whatever ends one otherwise."""
    numbers = itertools.count()

    async def send(asked: Asked) -> AsyncIterator[int]:
        sampling = Sampling(asked.output_tokens, temperature=0.0, ignore_eos=True)
        name = f"bench-{next(numbers)}"
        request = Request(name, asked.prompt, sampling, adapter=asked.adapter)
        async for delta in await engine.open(request):
            if delta.finish in (Finish.FAILED, Finish.CANCELLED):
                raise RuntimeError(delta.error or "cancelled")
            yield len(delta.tokens)

    return send


def to_server(session: aiohttp.ClientSession, url: str, model: str) -> Send:
    """The same through ``/v1/completions``, streamed, of any server that speaks OpenAI's API.

    A chunk counts as a token until the usage at the end says how many there were.
    """

    async def send(asked: Asked) -> AsyncIterator[int]:
        body = {
            "model": f"{model}:{asked.adapter}" if asked.adapter else model,
            "prompt": list(asked.prompt),
            "max_tokens": asked.output_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        seen = 0
        async with session.post(f"{url}/v1/completions", json=body) as response:
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {(await response.text())[:200]}")
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                if b'"usage":{' in line or b'"error"' in line:
                    value = json.loads(line[6:])
                    if "error" in value:
                        raise RuntimeError(str(value["error"]))
                    yield int(value["usage"]["completion_tokens"]) - seen
                else:
                    seen += 1
                    yield 1

    return send
