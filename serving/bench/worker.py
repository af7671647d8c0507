"""An engine in a process of its own, asked over its standard input, a JSON object a line.

    python -m serving.bench.worker ENGINE_CONFIG_JSON

Answers come on standard output in the same form; whatever else is printed goes to standard error.
``{"do": "replay", "asked": [...]}`` sends requests when they are due and answers with a timing for
each; ``{"do": "load"}`` says how busy the engine is. An empty line, or the end, ends it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any

from serving.api import Dispatcher
from serving.bench.arrivals import from_json
from serving.bench.open_loop import replay
from serving.bench.senders import to_engine
from serving.engine.build import build_engine
from serving.engine.config import EngineConfig


def main() -> None:
    config = EngineConfig.model_validate_json(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print where they like
    asyncio.run(_serve(config, answers))


async def _serve(config: EngineConfig, answers: Any) -> None:
    engine = build_engine(config)
    began_s = time.monotonic()
    await engine.start()
    dispatcher = Dispatcher(engine)
    reading = asyncio.ensure_future(dispatcher.run())
    facts = engine.facts
    print(
        json.dumps(
            {
                "model": facts.model,
                "vocab_size": facts.vocab_size,
                "max_tokens": facts.max_tokens,
                "start_s": time.monotonic() - began_s,
            }
        ),
        file=answers,
    )
    send = to_engine(dispatcher)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        order = json.loads(line)
        if order["do"] == "replay":
            began_s, cpu_s = time.perf_counter(), time.process_time()
            timings = await replay(from_json(order["asked"]), send)
            answer: Any = {
                "seconds": time.perf_counter() - began_s,
                "cpu_s": time.process_time() - cpu_s,
                "timings": [asdict(timing) for timing in timings],
            }
        else:
            answer = asdict(engine.load())
        print(json.dumps(answer), file=answers)
    await engine.close()
    reading.cancel()


if __name__ == "__main__":
    main()
