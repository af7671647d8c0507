"""A text's claims are found, each is searched for, and judged by what was found (2307.13528)."""

from __future__ import annotations

import asyncio

from hecate.bench.gittins.applications.draws import Draws
from hecate.bench.gittins.applications.protocol import Done, Run, World

KEYWORDS = 5


def claims_of(answer: str, text: str, count: int) -> list[str]:
    """``count`` claims: lines of the answer, and sentences of the text itself where it has too
    few."""
    lines = [line.strip(" -*\t") for line in answer.splitlines() if line.strip(" -*\t")]
    sentences = [part.strip() for part in text.split(". ") if part.strip()]
    claims = (lines + sentences)[:count]
    return claims + [claims[-1] if claims else text] * (count - len(claims))


async def fact_check(run: Run, world: World, draws: Draws) -> Done:
    """As many claims as its class has, all at once in every step."""
    text = world.documents[draws.choose(len(world.documents))].text
    passage = world.cut(text, draws.prompt("claims"))
    answer = await run.ask("claims", f"{passage}\nClaims, one a line:\n", draws.output("claims"))
    claims = claims_of(answer, passage, draws.calls("queries"))
    drawn = [(draws.prompt("queries"), draws.output("queries")) for _ in claims]
    asked = [
        run.ask("queries", world.cut(f"{passage}\nClaim: {claim}\nSearch for:", most), tokens)
        for claim, (most, tokens) in zip(claims, drawn, strict=True)
    ]
    queries = await asyncio.gather(*asked)
    async with run.tool("search", "search"):
        words = [
            f"{query} {world.search.keywords(claim, KEYWORDS)}"
            for query, claim in zip(queries, claims, strict=True)
        ]
        found = await asyncio.gather(
            *(asyncio.to_thread(world.search.best, each, 2) for each in words)
        )
    evidence = [" ".join(passage.text for passage in each) for each in found]
    drawn = [(draws.prompt("verify"), draws.output("verify")) for _ in claims]
    judged = await asyncio.gather(
        *(
            run.ask("verify", world.cut(f"{proof}\nClaim: {claim}\nTrue?", most), tokens)
            for claim, proof, (most, tokens) in zip(claims, evidence, drawn, strict=True)
        )
    )
    return Done("\n".join(judged), 1 + 2 * len(claims), 1, succeeded=all(found))
