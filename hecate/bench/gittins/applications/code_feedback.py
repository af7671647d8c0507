"""A function is written, its tests are run, and what they say is part of the next prompt."""

from __future__ import annotations

from dataclasses import dataclass

from hecate.bench.gittins.applications.draws import Draws
from hecate.bench.gittins.applications.protocol import Done, Run, World
from serving.sandbox import Program


@dataclass(frozen=True)
class Problem:
    """``head``: what the answer begins with. ``tests``: raise where it is wrong."""

    question: str
    head: str
    tests: str


PROBLEMS = (
    Problem(
        "the greatest common divisor of two numbers",
        "def gcd(a: int, b: int) -> int:\n",
        "assert gcd(12, 18) == 6\nassert gcd(7, 5) == 1\nassert gcd(0, 4) == 4\n",
    ),
    Problem(
        "whether a text reads the same from its end, case aside",
        "def palindrome(text: str) -> bool:\n",
        "assert palindrome('Anna')\nassert not palindrome('Bob s')\nassert palindrome('')\n",
    ),
    Problem(
        "the numbers of a list that are there twice, in order",
        "def doubles(numbers: list[int]) -> list[int]:\n",
        "assert doubles([1, 2, 1, 3, 2, 1]) == [2]\nassert doubles([3, 2, 3, 2]) == [2, 3]\n",
    ),
    Problem(
        "the n-th Fibonacci number, the first two being 0 and 1",
        "def fibonacci(n: int) -> int:\n",
        "assert [fibonacci(n) for n in range(7)] == [0, 1, 1, 2, 3, 5, 8]\n",
    ),
    Problem(
        "a text's words by how often they come, the most frequent first",
        "def frequencies(text: str) -> list[tuple[str, int]]:\n",
        "assert frequencies('b a b') == [('b', 2), ('a', 1)]\nassert frequencies('') == []\n",
    ),
)
EXPLAINED = (
    "Each answer is a Python function. It is run with its tests in a sandbox; what goes wrong "
    "is reported with the next question. Nothing but the function's body is written.\n\n"
)
TEST_S = 10.0


def body_of(answer: str) -> str:
    """The function's body in what the model said: a fenced block where there is one, and up to the
    first line that is not indented."""
    if "```" in answer:
        answer = answer.split("```")[1].removeprefix("python\n")
    kept = []
    for line in answer.splitlines():
        if line.strip() and not line.startswith((" ", "\t")):
            break
        kept.append(line)
    return "\n".join(kept)


async def code_feedback(run: Run, world: World, draws: Draws) -> Done:
    """Until its tests pass, or for as many rounds as its class has."""
    problem = PROBLEMS[draws.choose(len(PROBLEMS))]
    history = ""
    body, used = "", 0
    rounds = draws.rounds()
    for number in range(rounds):
        asked = f"{history}Write {problem.question}.\n{problem.head}"
        context = world.cut(EXPLAINED * 8 + asked, draws.prompt("generate"))
        body = body_of(await run.ask("generate", context, draws.output("generate")))
        async with run.tool("docker", "container"):
            program = f"{problem.head}{body}\n\n{problem.tests}"
            outcome = await world.sandboxes.run(Program(program, timeout_s=TEST_S))
        used += 1
        if outcome.exit_code == 0:
            return Done(body, number + 1, used)
        said = outcome.stderr.strip().splitlines()[-1:] or ["it took too long"]
        history += f"{problem.head}{body}\n# {said[0]}\n"
    return Done(body, rounds, used, succeeded=False)
