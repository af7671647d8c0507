"""Real applications: their tools do real work, and what the model says decides what it can."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from api_server import Server
from rule_engine import RuleEngine

from hecate.bench.gittins.applications import TASKS
from hecate.bench.gittins.applications.code_feedback import PROBLEMS, body_of
from hecate.bench.gittins.applications.corpus import documents_in, passages_of
from hecate.bench.gittins.applications.draws import SHAPE_OF, Draws
from hecate.bench.gittins.applications.fact_check import claims_of
from hecate.bench.gittins.applications.protocol import Done, World
from hecate.bench.gittins.applications.run import Mix, run_mix
from hecate.bench.gittins.applications.search import Passage, Search
from hecate.bench.gittins.classes import Shape
from hecate.errors import ConfigError
from serving.sandbox import STARTERS, SandboxConfig, SandboxPool

DOCUMENTS = [
    Passage("rivers", "The Rhine flows north. " * 40 + "\n\n" + "The Danube flows east. " * 40),
    Passage("hills", "Hills are low. The Harz has many of them. " * 40),
]
SOLVED = {
    "gcd": "    while b:\n        a, b = b, a % b\n    return a\n",
    "palindrome": "    text = text.lower()\n    return text == text[::-1]\n",
    "doubles": "    return sorted({n for n in numbers if numbers.count(n) == 2})\n",
    "fibonacci": "    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n",
    "frequencies": "    words = text.split()\n"
    "    return sorted(((w, words.count(w)) for w in {*words}), key=lambda p: -p[1])\n",
}


class Scripted:
    """Answers by a rule, and notes who was asked and used."""

    def __init__(self, rule: Callable[[str, str], str]) -> None:
        self._rule = rule
        self.asked: list[tuple[str, str, int]] = []
        self.used: list[tuple[str, str]] = []

    async def ask(self, unit: str, prompt: str, tokens: int) -> str:
        self.asked.append((unit, prompt, tokens))
        await asyncio.sleep(0)
        return self._rule(unit, prompt)

    @asynccontextmanager
    async def tool(self, unit: str, kind: str) -> AsyncIterator[None]:
        self.used.append((unit, kind))
        yield


def run_task(name: str, run: Scripted, seed: int = 0, length: float = 0.1) -> Done:
    async def whole() -> Done:
        config = SandboxConfig(most=1)
        pool = SandboxPool(config, STARTERS[config.kind](config), time.monotonic)
        world = World(DOCUMENTS, Search(passages_of(DOCUMENTS)), pool, 4.0)
        draws = Draws(np.random.default_rng(seed), SHAPE_OF[name], length)
        try:
            return await TASKS[name](run, world, draws)
        finally:
            await pool.close()

    return asyncio.run(whole())


def solved(unit: str, prompt: str) -> str:
    head = prompt[prompt.rindex("def ") :]
    return SOLVED[head.removeprefix("def ").split("(")[0]] + "print('never written')"


@pytest.mark.parametrize("seed", range(3))
def test_code_that_passes_its_tests_is_done_at_once(seed: int) -> None:
    run = Scripted(solved)
    done = run_task("code_feedback", run, seed, length=1.0)
    assert done.succeeded and (done.asked, done.used) == (1, 1)
    assert run.used == [("docker", "container")]
    assert "never written" not in done.result


def test_every_problem_can_be_solved() -> None:
    for problem in PROBLEMS:
        name = problem.head.removeprefix("def ").split("(")[0]
        exec(problem.head + SOLVED[name] + problem.tests, {})


def test_what_goes_wrong_is_in_the_next_prompt() -> None:
    run = Scripted(lambda unit, prompt: "    raise KeyError('nothing yet')\n")
    seed = next(s for s in range(50) if Draws(*_shape("code_feedback", s)).rounds() > 1)
    done = run_task("code_feedback", run, seed, length=1.0)
    assert not done.succeeded and done.asked == done.used == len(run.asked)
    if done.asked > 1:
        assert "nothing yet" in run.asked[1][1]


def _shape(name: str, seed: int) -> tuple[np.random.Generator, Shape, float]:
    return np.random.default_rng(seed), SHAPE_OF[name], 1.0


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        ("    return 1\nprint(2)", "    return 1"),
        ("```python\n    return 1\n```\nThat is it.", "    return 1"),
        ("\n    return 1\n\n    # so\n", "\n    return 1\n\n    # so"),
    ],
)
def test_a_body_ends_with_its_indentation(answer: str, body: str) -> None:
    assert body_of(answer) == body


def test_summaries_are_of_all_parts_and_then_of_summaries() -> None:
    run = Scripted(lambda unit, prompt: f"({unit} of {len(prompt)})")
    done = run_task("map_reduce", run, length=1.0)
    units = [unit for unit, _, _ in run.asked]
    assert units.count("map") > 5 and units.count("final") == 1 and units[-1] == "final"
    assert done.asked == len(units)
    last = run.asked[-1][1]
    assert "collapse of" in last if "collapse" in units else "map of" in last


def test_thoughts_search_for_what_they_say() -> None:
    run = Scripted(lambda unit, prompt: " It is a river. search[Danube]")
    seed = next(s for s in range(50) if _rounds("react", s) > 1)
    done = run_task("react", run, seed, length=1.0)
    assert done.used == done.asked - 1 == len(run.used)
    if done.asked > 1:
        assert "Danube flows east" in run.asked[1][1]


def _rounds(name: str, seed: int) -> int:
    draws = Draws(np.random.default_rng(seed), SHAPE_OF[name], 1.0)
    draws.choose(len(DOCUMENTS))
    return draws.rounds()


def test_a_thought_that_finishes_ends_it() -> None:
    run = Scripted(lambda unit, prompt: " That is it. finish[the Harz]")
    done = run_task("react", run)
    assert (done.result, done.asked, done.used) == ("the Harz", 1, 0)


def test_each_claim_is_searched_for_and_judged() -> None:
    run = Scripted(lambda unit, prompt: "- The Rhine flows north\n- Hills are low\n")
    done = run_task("fact_check", run, length=1.0)
    units = [unit for unit, _, _ in run.asked]
    assert units[0] == "claims" and units.count("queries") == units.count("verify") > 1
    assert run.used == [("search", "search")] and done.succeeded
    assert any("Rhine" in prompt for unit, prompt, _ in run.asked if unit == "verify")


def test_claims_are_lines_of_the_answer_then_sentences() -> None:
    assert claims_of("- one\n\n* two", "Three. Four", 3) == ["one", "two", "Three"]
    assert claims_of("", "Three. Four", 1) == ["Three"]
    assert claims_of("a", "", 3) == ["a", "a", "a"]


def test_turns_of_a_chat_have_what_was_said_before() -> None:
    run = Scripted(lambda unit, prompt: f" [{prompt.count('Assistant:')}]")
    seed = next(s for s in range(50) if Draws(*_shape("chat", s)).rounds() > 2)
    done = run_task("chat", run, seed, length=0.05)
    counts = [prompt.count("Assistant:") for _, prompt, _ in run.asked]
    assert counts == list(range(1, done.asked + 1)) and done.asked > 2
    assert done.used == done.asked - 1


def test_the_best_passage_is_of_rare_words() -> None:
    passages = passages_of(DOCUMENTS)
    search = Search(passages)
    assert {p.title for p in search.best("many hills of the Harz", 2)} == {"hills"}
    assert search.best("nowhere", 3) == []
    assert search.keywords("the Danube flows", 1) == "danube"
    assert all(len(p.text) <= 600 for p in passages)
    whole = "".join(p.text for p in passages if p.title == "hills")
    assert whole == DOCUMENTS[1].text.strip()


def test_a_corpus_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha " * 300)
    (tmp_path / "b.md").write_text(" ")
    assert [d.title for d in documents_in(str(tmp_path))] == ["a.txt"]
    with pytest.raises(ConfigError, match="no text to search"):
        documents_in(str(tmp_path / "b.md"))


def test_the_standard_library_is_a_corpus() -> None:
    documents = documents_in("")
    assert len(documents) > 20 and all(len(d.text) >= 600 for d in documents)


def test_all_of_them_run_over_http(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Rivers flow. Hills are low. " * 50)
    server = Server(RuleEngine(max_tokens=4096))
    try:
        mix = Mix(dict.fromkeys(TASKS, 1), rate=50.0, length=0.01, corpus=str(tmp_path))
        ended = asyncio.run(run_mix(server.url, server.engine.facts.model, mix))
    finally:
        server.stop()
    assert sorted(each.name for each in ended) == sorted(TASKS)
    for each in ended:
        assert each.done is not None, each.error
        assert each.seconds > 0 and each.output_tokens >= each.done.asked
