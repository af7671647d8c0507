"""A document is summed up part by part, the summaries in groups, and those once more."""

from __future__ import annotations

import asyncio

from hecate.bench.gittins.applications.draws import Draws
from hecate.bench.gittins.applications.protocol import Done, Run, World


async def map_reduce(run: Run, world: World, draws: Draws) -> Done:
    """All parts at once; groups where its class has them."""
    document = world.documents[draws.choose(len(world.documents))].text
    count = draws.calls("map")
    width = max(1, -(-len(document) // count))
    parts = [document[at : at + width] for at in range(0, len(document), width)]
    prompts = [
        (f"Sum up:\n{world.cut(part, draws.prompt('map'))}\nSummary:", draws.output("map"))
        for part in parts
    ]
    summaries = await asyncio.gather(*(run.ask("map", *each) for each in prompts))
    asked = len(parts)
    if draws.happens("collapse"):
        groups = min(draws.calls("collapse"), len(summaries))
        grouped = [
            (
                world.cut(f"Sum up:\n{' '.join(summaries[at::groups])}", draws.prompt("collapse")),
                draws.output("collapse"),
            )
            for at in range(groups)
        ]
        summaries = await asyncio.gather(*(run.ask("collapse", *each) for each in grouped))
        asked += groups
    whole = world.cut("\n".join(summaries), draws.prompt("final"))
    final = await run.ask("final", f"{whole}\nIn short:", draws.output("final"))
    return Done(final, asked + 1, 0)
