"""A question is answered by thoughts and searches in turns (ReAct, 2210.03629)."""

from __future__ import annotations

import asyncio
import re

from hecate.bench.gittins.applications.draws import Draws
from hecate.bench.gittins.applications.protocol import Done, Run, World

_ACTION = re.compile(r"search\[([^\]\n]+)\]", re.IGNORECASE)
_ANSWER = re.compile(r"finish\[([^\]\n]+)\]", re.IGNORECASE)
EXPLAINED = (
    "Questions are answered by thoughts, and actions search[words] or finish[answer].\n"
    "Question: what sorts a list?\nThought 1: It is a built-in function. search[sort list]\n"
    "Found 1: sorted returns a new sorted list.\nThought 2: That is it. finish[sorted]\n\n"
)
KEYWORDS = 4


async def react(run: Run, world: World, draws: Draws) -> Done:
    """Until it finishes, or for as many thoughts as its class has. What it searches for is what it
    says to, or else the rarest words of its thought."""
    topic = world.documents[draws.choose(len(world.documents))]
    question = f"Question: what does {topic.title} say of {world.search.keywords(topic.text, 2)}?\n"
    history = question
    thought, found, used = "", 0, 0
    rounds = draws.rounds()
    for number in range(1, rounds + 1):
        asked = f"{EXPLAINED * 6}{history}Thought {number}:"
        prompt = world.cut(asked, draws.prompt("thought"))
        thought = await run.ask("thought", prompt, draws.output("thought"))
        history += f"Thought {number}:{thought}\n"
        if answer := _ANSWER.search(thought):
            return Done(answer[1], number, used, succeeded=found > 0)
        if number == rounds:
            break
        action = _ACTION.search(thought)
        query = action[1] if action else world.search.keywords(f"{question} {thought}", KEYWORDS)
        async with run.tool("search", "search"):
            passages = await asyncio.to_thread(world.search.best, query, 1)
        used += 1
        found += len(passages)
        history += f"Found {number}: {passages[0].text if passages else 'nothing'}\n"
    return Done(thought, rounds, used, succeeded=found > 0)
