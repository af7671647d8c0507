"""A conversation: each turn has all that was said before in its prompt, and its user thinks."""

from __future__ import annotations

import asyncio

from hecate.bench.gittins.applications.draws import Draws
from hecate.bench.gittins.applications.protocol import Done, Run, World

THINKS_S = 0.2  # on average: somebody quick, so that a benchmark ends
MOST_TOKENS = 1024


async def chat(run: Run, world: World, draws: Draws) -> Done:
    """As many turns as drawn."""
    said = ""
    answer = ""
    turns = draws.rounds()
    for number in range(turns):
        if number:
            async with run.tool("user", "tool"):
                await asyncio.sleep(draws.seconds(THINKS_S))
        topic = world.documents[draws.choose(len(world.documents))].text
        said += f"User: {world.cut(topic, draws.prompt('turn'))}\nAssistant:"
        answer = await run.ask("turn", world.cut(said, MOST_TOKENS), draws.output("turn"))
        said += f"{answer}\n"
    return Done(answer, turns, turns - 1)
