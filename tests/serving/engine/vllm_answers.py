"""Run in vLLM's own environment: what our engine of kind vllm answers.

python vllm_answers.py FOLDER ADAPTER    prints one JSON line
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from typing import Any

from serving.engine.build import build_engine
from serving.engine.config import EngineConfig, MemoryConfig
from serving.engine.protocol import Engine
from serving.errors import InvalidRequest, ModelNotFound
from serving.lora.config import LoraConfig
from serving.request import Grammar, Request, Sampling
from serving.scheduling.config import SchedulingConfig

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}


SCORED = Sampling(4, seed=1, prompt_logprobs=2)  # vLLM gives one greedy answer at most


def engine_with(adapters: int) -> Engine:
    return build_engine(
        EngineConfig(
            model=sys.argv[1],
            name="toy",
            kind="vllm",
            dtype="float32",
            threads=1,
            kernels="off",
            max_tokens=512,
            memory=MemoryConfig(kv_gib=0.25),
            scheduling=SchedulingConfig(max_sequences=4),
            lora=LoraConfig(slots=adapters, max_rank=8),
        )
    )


async def scores(prompt: tuple[int, ...]) -> list[list[tuple[int, float]]]:
    """Of each of two answers, tokens of ``prompt`` and what they were given."""
    engine = engine_with(adapters=0)
    await engine.start()
    await engine.submit(Request("scored", prompt, SCORED, n=2))
    found: list[list[tuple[int, float]]] = [[], []]
    left = 2
    async for deltas in engine.steps():
        for delta in deltas:
            found[delta.index] += [(one.token, one.logprob) for one in delta.prompt_logprobs]
            left -= delta.finish is not None
        if not left:
            break
    await engine.close()
    return found


async def main() -> None:
    engine = engine_with(adapters=1)
    await engine.start()
    found: dict[str, Any] = {"facts": vars(engine.facts)}
    answers: dict[str, dict[int, dict[str, Any]]] = defaultdict(
        lambda: defaultdict(lambda: {"tokens": [], "text": "", "deltas": 0, "finish": []})
    )
    ended = 0
    changed = asyncio.Condition()

    async def read() -> None:
        nonlocal ended
        async for deltas in engine.steps():
            for delta in deltas:
                answer = answers[delta.request_id][delta.index]
                answer["tokens"] += delta.tokens
                answer["text"] += delta.text
                answer["deltas"] += 1
                answer["usage"] = vars(delta.usage)
                answer["top"] = [len(each.top) for each in delta.logprobs]
                if delta.finish is not None:
                    answer["finish"].append(delta.finish.value)
                    ended += 1
            async with changed:
                changed.notify_all()

    reading = asyncio.ensure_future(read())

    async def until(count: int) -> None:
        async with changed:
            await asyncio.wait_for(changed.wait_for(lambda: ended >= count), 240)

    prompt = tuple(260 + (7 * i) % 250 for i in range(300))
    bytes_away = {token: -100.0 for token in range(257)}  # words alone: no half characters
    greedy = Sampling(12, temperature=0.0, ignore_eos=True, logprobs=2, logit_bias=bytes_away)
    await engine.submit(Request("first", prompt, greedy))
    await until(1)
    await engine.submit(Request("second", prompt, greedy, priority=-1))  # its prefix is known
    await engine.submit(Request("other tenant", prompt, greedy, tenant="ann"))
    await engine.submit(Request("two", prompt[:40], Sampling(6, seed=1, ignore_eos=True), n=2))
    form = Sampling(64, temperature=0.0, grammar=Grammar("json", json.dumps(SCHEMA)))
    await engine.submit(Request("form", prompt[:20], form))
    await until(6)
    await engine.submit(Request("long", prompt[:20], Sampling(200, ignore_eos=True)))
    while not answers["long"][0]["deltas"]:
        await asyncio.sleep(0.01)
    await engine.cancel("long")
    await until(7)
    facts = await engine.load_adapter("near", sys.argv[2])
    found["adapter"] = {"rank": facts.rank, "served": [each.name for each in engine.adapters()]}
    await engine.submit(Request("adapted", prompt, greedy, adapter="near"))
    await until(8)
    await engine.unload_adapter("near")
    for name, request in (
        ("no adapter", Request("r", prompt[:9], greedy, adapter="near")),
        ("bad form", Request("r", prompt[:9], Sampling(8, grammar=Grammar("json", '{"type": 3}')))),
        ("too long", Request("r", prompt * 2, greedy)),
        ("scored", Request("r", prompt[:50], SCORED)),
    ):
        try:
            await engine.submit(request)
            found[name] = "admitted"
        except (InvalidRequest, ModelNotFound) as error:
            found[name] = type(error).__name__
    await asyncio.sleep(0.2)
    found["load"] = vars(engine.load())
    engine.check()
    await engine.close()
    await reading
    found["scores"] = await scores(prompt[:50])
    found["answers"] = answers
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
