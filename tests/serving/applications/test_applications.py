"""Applications by HTTP: tags in headers and bodies, tools, turns, and what people are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from api_server import Server
from patience import PATIENCE_S, until
from rule_engine import RuleEngine

from serving.api import Backend
from serving.applications import ApplicationsConfig, OrderedApplications
from serving.client import Application
from serving.scheduling.applications.config import HistoryConfig


def serve(
    policy: str, *, history_file: str = "", max_waiting: int = 256, **engine: Any
) -> Server[RuleEngine]:
    def applications(backend: Backend) -> OrderedApplications:
        history = HistoryConfig(enough_traces=2)
        config = ApplicationsConfig(
            history=history,
            history_file=history_file,
            save_s=0.05,
            ahead=0,
            tick_s=0.02,
            max_waiting=max_waiting,
        )
        return OrderedApplications(backend, policy, config, time.monotonic)

    return Server(RuleEngine(step_s=0.005, **engine), applications)


@pytest.fixture
def server() -> Iterator[Server[RuleEngine]]:
    server = serve("las", most=1)
    yield server
    server.stop()


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def told(server: Server[RuleEngine]) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/v1/applications").json()
    return found


def metric(server: Server[RuleEngine], name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    (value,) = (
        line.split()[1] for line in lines if line.startswith(f"hecate_applications_{name} ")
    )
    return float(value)


def test_an_instance_by_headers_by_body_and_by_the_client_is_the_same(
    server: Server[RuleEngine],
) -> None:
    client = server.client()
    ask: Any = client.chat.completions.create
    headers = {"x-app-class": "review", "x-unit": "write"}
    ask(model="toy", messages=user("hello"), extra_headers={**headers, "x-app-id": "1"})
    body = {"class": "review", "id": "1", "unit": "answer", "last": True}
    ask(model="toy", messages=user("hello there"), extra_body={"application": body})
    app = Application(client, "review")
    with app.instance() as run:
        answer = run.chat.completions.create(model="toy", messages=user("hello"), unit="write")
        assert answer.choices[0].message.content == "hello"
        run.unit("answer").completions.create(model="toy", prompt="hello there", max_tokens=20)
    found = told(server)
    assert found["under_way"] == 0 and found["policy"] == "las"
    (review,) = found["classes"]
    assert review["class"] == "review" and review["instances"] == 2
    assert {(edge["from"], edge["to"], edge["probability"]) for edge in review["edges"]} == {
        ("", "write", 1.0),
        ("write", "answer", 1.0),
        ("answer", "", 1.0),
    }
    write = next(unit for unit in review["units"] if unit["unit"] == "write")
    assert write["kind"] == "llm" and write["runs"] == 2 and write["share"] == 1.0
    assert write["output_tokens"]["mean"] > 0 and sum(write["seconds"]["histogram"]) == 2


def test_tools_are_units_with_their_time_and_their_failures(server: Server[RuleEngine]) -> None:
    app = Application(server.client(), "tester")

    @app.tool(kind="container")
    def run_tests(fails: bool) -> int:
        time.sleep(0.05)
        if fails:
            raise ValueError("red")
        return 7

    assert run_tests(False) == 7  # of no instance
    for fails in (False, True):
        with app.instance() as run:
            run.chat.completions.create(model="toy", messages=user("hello"), unit="write")
            if fails:
                with pytest.raises(ValueError, match="red"):
                    run_tests(fails)
            else:
                assert run_tests(fails) == 7
    (tester,) = told(server)["classes"]
    tests = next(unit for unit in tester["units"] if unit["unit"] == "run_tests")
    assert tests["kind"] == "container" and tests["runs"] == 2 and tests["failed"] == 1
    assert 0.05 <= tests["seconds"]["least"] < PATIENCE_S
    assert "prompt_tokens" not in tests


@pytest.mark.parametrize(
    ("headers", "application"),
    [
        ({"x-app-class": "a\tb"}, None),
        ({"x-app-id": "1"}, None),
        ({"x-app-class": "a", "x-deadline": "soon"}, None),
        ({}, ["a"]),
        ({}, {"class": "a", "priority": -1000}),
        ({}, {"class": "a" * 129}),
    ],
)
def test_tags_that_cannot_be_read_refuse_nothing_and_are_counted(
    server: Server[RuleEngine], headers: dict[str, str], application: object
) -> None:
    for number in (1, 2):
        answer = server.client().chat.completions.create(
            model="toy",
            messages=user("hello"),
            extra_headers=headers,
            extra_body={} if application is None else {"application": application},
        )
        assert answer.choices[0].message.content == "hello"
        assert metric(server, "malformed_tags_total") == number
    assert [each["class"] for each in told(server)["classes"]] == [""]


def test_what_is_told_of_units_is_checked(server: Server[RuleEngine]) -> None:
    def post(what: str, **body: object) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/applications/{what}", json=body)

    assert post("units", **{"class": "a", "id": "1"}).status_code == 400
    assert post("end", **{"class": "a\n", "id": "1"}).status_code == 400
    assert post("end", **{"class": "a", "id": "1"}).json() == {"ended": False}
    unit = {"class": "a", "id": "1", "unit": "t"}
    assert post("units", **unit, event="end").json() == {"ended": False}
    assert post("units", **unit, event="begin").json() == {"begun": True}
    (live,) = told(server)["instances"]
    assert live["class"] == "a" and live["open"] == ["t"] and live["position"] is None
    assert post("units", **unit, event="end").json() == {"ended": True}
    assert post("end", **{"class": "a", "id": "1"}).json() == {"ended": True}
    assert told(server)["classes"][0]["units"][0]["seconds"]["most"] >= 0


def in_order(server: Server[RuleEngine], *asks: dict[str, Any]) -> list[str]:
    """The contents of ``asks``, sent one after the other while the engine is busy, as they were
    answered."""
    client = server.client()
    ended: list[str] = []

    def ask(headers: dict[str, str], text: str, **more: Any) -> None:
        client.chat.completions.create(
            model="toy", messages=user(text), extra_headers=headers, **more
        )
        ended.append(text)

    with ThreadPoolExecutor(len(asks) + 1) as pool:
        pool.submit(ask, {"x-app-class": "first"}, "hello there " * 60)
        until(lambda: told(server)["running"] == 1, "the first")
        for number, each in enumerate(asks, 1):
            pool.submit(ask, **each)
            until(lambda: told(server)["waiting"] == number, f"ask {number}")  # noqa: B023
    return ended[1:]


def test_who_had_least_goes_first_and_headers_do_not_change_that(
    server: Server[RuleEngine],
) -> None:
    client: Any = server.client()
    old = {"x-app-class": "long", "x-app-id": "old"}
    for _ in range(2):
        client.chat.completions.create(
            model="toy", messages=user("hello there " * 30), extra_headers=old
        )
    ended = in_order(
        server,
        {"headers": old, "text": "old", "extra_body": {"priority": -1000}},
        {"headers": {"x-app-class": "long", "x-app-id": "new"}, "text": "new"},
        {"headers": {}, "text": "untagged"},
    )
    assert ended == ["new", "untagged", "old"]


def test_priority_orders_a_clients_own_requests(server: Server[RuleEngine]) -> None:
    ended = in_order(
        server,
        {"headers": {}, "text": "one"},
        {"headers": {}, "text": "two", "extra_body": {"priority": 1}},
        {"headers": {}, "text": "three", "extra_body": {"priority": -1}},
    )
    assert ended == ["three", "one", "two"]


def test_who_leaves_while_waiting_is_forgotten(server: Server[RuleEngine]) -> None:
    client = server.client()
    long = threading.Thread(
        target=lambda: client.chat.completions.create(
            model="toy", messages=user("hello there " * 60)
        )
    )
    long.start()
    until(lambda: told(server)["running"] == 1, "the first")
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).chat.completions.create(
            model="toy", messages=user("hello"), extra_headers={"x-app-class": "gone"}
        )
    until(lambda: told(server)["waiting"] == 0, "the end of the one who left")
    long.join(PATIENCE_S)
    assert len(server.engine.seen) == 1


def test_an_answer_of_more_than_engines_hold_is_not_refused_but_waits() -> None:
    """An engine that has fewer places than it says it has: what it refuses waits for the next."""
    server = serve("las", most=2)
    try:
        server.engine._most = 1
        ask: Any = server.client().chat.completions.create
        with ThreadPoolExecutor(4) as pool:
            answers = [
                pool.submit(ask, model="toy", messages=user("hello there " * 10)) for _ in range(4)
            ]
            assert {len(each.result(PATIENCE_S).choices) for each in answers} == {1}
    finally:
        server.stop()


def test_more_than_may_wait_is_refused() -> None:
    server = serve("las", max_waiting=2, most=1)
    try:
        ask: Any = server.client().chat.completions.create
        with ThreadPoolExecutor(3) as pool:
            answers = [
                pool.submit(ask, model="toy", messages=user("hello there " * 60)) for _ in range(3)
            ]
            until(lambda: told(server)["waiting"] == 2, "two that wait")
            with pytest.raises(openai.RateLimitError) as caught:
                ask(model="toy", messages=user("hello"))
            assert int(caught.value.response.headers["retry-after"]) >= 1
            assert [each.result(PATIENCE_S).choices[0].finish_reason for each in answers]
    finally:
        server.stop()


def test_what_was_learnt_is_there_after_a_crash_and_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "kept" / "applications.jsonl"
    first = serve("las", history_file=str(file))
    try:
        with Application(first.client(), "review").instance() as run:
            run.completions.create(model="toy", prompt="hello", max_tokens=4, unit="write")
        until(lambda: file.exists() and "review" in file.read_text(), "what a crash leaves")
        for _ in range(2):
            with Application(first.client(), "review").instance() as run:
                run.completions.create(model="toy", prompt="hello", max_tokens=4, unit="write")
    finally:
        first.stop()
    again = serve("las", history_file=str(file))
    try:
        (review,) = told(again)["classes"]
        assert review["class"] == "review" and review["instances"] == 3
        assert [unit["unit"] for unit in review["units"]] == ["write"]
    finally:
        again.stop()
