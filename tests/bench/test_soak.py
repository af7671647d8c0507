"""The soak: the parts that decide, by hand; and its load on one engine, for a moment."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from hecate.bench.soak.accounts import (
    MIB,
    Course,
    Outcome,
    Quiet,
    Sample,
    failures,
    fault_notes,
    growth,
    growths,
    longest_outage_s,
    outcome_rows,
    process_rows,
    summary,
)
from hecate.bench.soak.asks import Asks, keeps_to_schema
from hecate.bench.soak.checks import Choice, Reply, Wanted, error_fault, judge
from hecate.bench.soak.load import Pressure
from hecate.bench.soak.meaning import GONE, Meanings
from hecate.bench.soak.references import References, make_references
from hecate.bench.soak.run import QUICK, make_load, write_config
from hecate.config import load_config
from serving.api import Dispatcher, Prompts, Serving, Tenants, build_api
from serving.api.tenants import read_keys
from serving.app.config import ServingConfig
from serving.app.listener import Listener
from serving.engine.build import build_engine

ERROR = {"error": {"message": "no", "type": "t", "param": None, "code": None}}


def test_what_a_name_may_mean() -> None:
    names = Meanings()
    assert names.during("x", 0, 9) == {GONE}
    names.begin("x", "one", 10)
    names.done("x", "one", 12)
    assert names.during("x", 1, 9) == {GONE}
    assert names.during("x", 9, 11) == names.during("x", 11, 11.5) == {GONE, "one"}
    assert names.during("x", 12, 99) == {"one"}
    names.begin("x", "two", 20)  # fails: nobody knows what it means now
    names.begin("x", "three", 30)
    names.done("x", "three", 31)
    assert names.during("x", 13, 19) == {"one"}
    assert names.during("x", 25, 26) == {"one", "two"}
    assert names.during("x", 25, 32) == {"one", "two", "three"}
    assert names.now("x") == {"three"} and names.now("y") == {GONE}


def text_of(*wanted: str) -> Wanted:
    def check(choices: Any, contents: Any) -> str:
        texts = [choice.text for choice in choices]
        return "" if texts == list(wanted) and "a" in contents else f"{texts}"

    return Wanted(check, len(wanted))


def chunk(index: int, text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": index, "text": text, "finish_reason": finish}]}


def test_a_stream_is_put_together_and_judged() -> None:
    events = (chunk(0, "he"), chunk(1, "you", "stop"), chunk(0, "llo", "length"))
    reply = Reply(200, events=events, ended=True, streamed=True)
    assert judge(reply, text_of("hello", "you"), {"a"}).kind == "answered"
    assert judge(reply, text_of("hello", "you"), {"b", GONE}).kind == "wrong"
    assert judge(reply, text_of("hello", "me"), {"a"}).kind == "wrong"
    assert judge(reply, text_of("hello"), {"a"}).why == "choice 1 of 1"
    assert judge(replace(reply, ended=False), text_of("hello", "you"), {"a"}).kind == "unclear"
    no_end = replace(reply, events=events[:2])
    assert judge(no_end, text_of("hello", "you"), {"a"}).why == "a choice without an end"
    more = replace(reply, events=(*events, chunk(1, "r")))
    assert judge(more, text_of("hello", "your"), {"a"}).why == "more of a choice after its end"
    lost = replace(reply, events=(events[0], ERROR), ended=False)
    assert judge(lost, text_of("hello", "you"), {"a"}).kind == "failed"
    assert judge(reply, Wanted(statuses=frozenset({400})), {"a"}).kind == "unclear"


@pytest.mark.parametrize(
    ("status", "value", "again", "contents", "kind"),
    [
        (400, ERROR, "", {"a"}, "refused"),
        (404, ERROR, "", {"a"}, "unclear"),
        (404, ERROR, "", {"a", GONE}, "refused"),
        (429, ERROR, "3", {"a"}, "refused"),
        (429, ERROR, "", {"a"}, "unclear"),
        (503, ERROR, "", {"a"}, "failed"),
        (503, "Bad gateway", "", {"a"}, "unclear"),
        (500, ERROR, "", {"a"}, "unclear"),
        (400, {"detail": "no"}, "", {"a"}, "unclear"),
    ],
)
def test_refusals(status: int, value: Any, again: str, contents: set[str], kind: str) -> None:
    wanted = Wanted(statuses=frozenset({400}))
    assert judge(Reply(status, value, again), wanted, contents).kind == kind


def test_errors_that_a_client_could_not_read() -> None:
    assert error_fault(ERROR) == ""
    assert error_fault({"error": {"message": "no", "type": "t"}}) == "an error without code, param"
    silent = {"error": {**ERROR["error"], "message": ""}}
    assert error_fault(silent) == "an error that says nothing"


def test_answers_that_keep_to_the_schema() -> None:
    assert keeps_to_schema([Choice('{"fine": true, "kind": "red"}')], ()) == ""
    for text in ('{"fine": true', '{"fine": 1, "kind": "red"}', '{"fine": true}', "[]"):
        assert keeps_to_schema([Choice(text)], ())


def sampled(process_id: int, values: list[tuple[float, float, int]], ours: bool = True) -> Any:
    return [
        Sample(at_s, process_id, f"role {process_id}", ours, int(mib * MIB), fds, 5)
        for at_s, mib, fds in values
    ]


def test_growth_is_between_thirds_after_the_warm_up() -> None:
    # 100 MiB more while it warms up, then 1 MiB every 360 s: 10 an hour. Two handles come late.
    values = [(360.0 * n, 100.0 + n if n else 0.0, 7 if n < 10 else 9) for n in range(13)]
    found = growth(sampled(1, values), warm_up_s=360, least_s=600)
    assert found is not None
    assert found.rss_mib_per_hour == pytest.approx(10.0)
    assert (found.fds, found.threads) == (2, 0)
    assert growth(sampled(1, values[:7]), warm_up_s=360, least_s=2000) is None
    shorter = sampled(2, [(360.0 * n, 50.0 + 2 * n, 7) for n in range(13)], ours=False)
    both = growths(sampled(1, values) + shorter, warm_up_s=360, least_s=600)
    rows = process_rows(both)
    assert [row["rss_mib_per_hour"] for row in rows] == pytest.approx([10.0, 20.0])
    figures = summary(course(), both)
    assert figures["rss_mib_per_hour"] == pytest.approx(10.0)
    assert figures["ray_rss_mib_per_hour"] == pytest.approx(20.0)
    assert figures["fds_growth"] == 2


def course() -> Course:
    def outcome(kind: Any, sent_s: float, seconds: float, status: int = 200) -> Outcome:
        return Outcome("chat", kind, f"{kind} it is; more", status, sent_s, seconds)

    return Course(
        begin_s=100,
        end_s=200,
        outcomes=(
            outcome("answered", 101, 1),
            outcome("answered", 110, 10),
            outcome("failed", 121, 4, 503),
            outcome("answered", 160, 2),
            outcome("wrong", 163, 3),
            outcome("unclear", 164, 1, 500),
            outcome("answered", 190, 5),
        ),
        samples=(),
        quiets=(Quiet(122, 30, 0.5, 0), Quiet(201, 1, 0.25, 3)),
        kills_s=(105.0, 123.0),
        replaced_s=(12.0, 15.0),
        abandoned=0.04,
    )


def test_outcomes_by_hand() -> None:
    found = course()
    # Answered at 102, 120, 162, 195. From 122 to 152 nothing was asked. 162 to 195 is the longest.
    assert longest_outage_s(found) == 33
    (row, whole) = outcome_rows(found.outcomes)
    assert row | {"what": "all requests"} == whole
    assert (row["answered"], row["failed"], row["faults"], row["refused"]) == (4, 1, 2, 0)
    assert (row["p50_s"], row["p99_s"]) == (3.5, 10)
    figures = summary(found, [])
    assert {name: figures[name] for name in ("requests", "answered", "failed")} == {
        "requests": 7,
        "answered": 4,
        "failed": 1,
    }
    assert (figures["wrong_answers"], figures["unclear_errors"], figures["server_errors"]) == (
        1,
        1,
        1,
    )
    assert (figures["leaked_blocks"], figures["idle_s"], figures["replaced_s"]) == (3, 0.5, 15)
    assert math.isnan(figures["rss_mib_per_hour"])
    assert fault_notes(found.outcomes) == [
        "wrong, 1 times: chat: wrong it is; more",
        "unclear, 1 times: chat: unclear it is; more",
    ]
    assert failures(found.outcomes, found.kills_s) == {
        "told": {"failed it is": 1},
        "latest_after_a_kill_s": 2.0,
    }


def enough(outcomes: list[Outcome]) -> bool:
    kinds = Counter(outcome.kind for outcome in outcomes)
    wanted = {"chat, streamed, adapter", "load adapter", "schema"}
    answered = kinds["answered"] > 50 and wanted <= {one.what for one in outcomes}
    return answered and kinds["refused"] > 0 and kinds["left"] > 0


async def under_load(references: References, folder: Path) -> tuple[list[Outcome], list[Quiet]]:
    """The load of a soak for a few seconds, on one engine of this process."""
    config = load_config(ServingConfig, write_config(references.folder, folder)).value
    engine = build_engine(config.engine)
    await engine.start()
    backend = Dispatcher(engine)
    running = asyncio.ensure_future(backend.run())
    api = build_api(
        Serving(
            backend=backend,
            prompts=Prompts.of_folder(references.folder),
            tenants=Tenants(
                read_keys(config.api.keys_file, "", config.api.quota),
                config.api.quota,
                time.monotonic,
            ),
            config=config.api,
            clock=time.monotonic,
            now=time.time,
        )
    )
    listener = Listener(api, "127.0.0.1", 0)
    await listener.start()
    pace = replace(QUICK, pressure=Pressure(clients=8, pause_s=0.02, burst=40, burst_s=2))
    try:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{listener.port}"
            clients, load = make_load(references, session, url, pace)
            load.start()
            end_s = time.monotonic() + 40
            while time.monotonic() < end_s and not enough(clients.outcomes):
                await asyncio.sleep(0.2)
            await load.stop()
            await load.quiet(20)
        return clients.outcomes, load.quiets
    finally:
        await listener.stop()
        await engine.close()
        await running


def test_a_moment_of_load_finds_nothing_wrong_with_one_engine(tmp_path: Path) -> None:
    references = make_references(tmp_path, seed=0, most=6)
    outcomes, (quiet,) = asyncio.run(under_load(references, tmp_path))
    assert fault_notes(outcomes) == []
    assert enough(outcomes)
    assert quiet.leaked_blocks == 0


def test_the_answer_of_another_adapter_is_noticed(tmp_path: Path) -> None:
    references = make_references(tmp_path, seed=0, most=6)
    asks = Asks(references, random.Random(1), names=("x",), keys=("k",), poor="p")
    ask = asks.greedy("x")
    body = ask.body
    assert isinstance(body, dict) and ask.wanted.check is not None
    number = next(
        at
        for at, prompt in enumerate(references.prompts)
        if list(prompt.messages) == body.get("messages")
        or list(prompt.tokens) == body.get("prompt")
    )
    one, other = list(references.adapters)[:2]
    ends = "ignore_eos" not in body
    right = references.expected(number, one, body["max_tokens"], ends=ends)
    tokens = body["max_tokens"] if body.get("logprobs") else 0
    choices = [Choice(right.text, right.finish, tokens=tokens)] * ask.wanted.n
    assert ask.wanted.check(choices, {one}) == ""
    assert ask.wanted.check(choices, {one, other}) == ""
    why = f"the answer of {one}, where it was to be that of {other}"
    assert ask.wanted.check(choices, {other}) == why
    assert ask.wanted.check(choices, ()).startswith(f"the answer of {one}, ")
    mixed = [Choice(right.text + "x", right.finish, tokens=tokens)] * ask.wanted.n
    assert ask.wanted.check(mixed, {one}).startswith(f"prompt {number}: ")
