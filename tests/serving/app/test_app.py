"""The app on a real Ray cluster of this machine, through the official client."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from patience import PATIENCE_S, until
from rule_engine import CRASH, RuleEngine, save_toy_tokenizer

ray = pytest.importorskip("ray")
from ray import serve  # noqa: E402

from hecate.ray_start import start_ray  # noqa: E402
from serving.app import AppConfig, build_app  # noqa: E402
from serving.app.config import HttpConfig, IngressConfig, ReplicasConfig  # noqa: E402
from serving.applications import ApplicationsConfig  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MOST = 8  # at once, of one replica
LONG = "hello there " * 240  # 960 tokens, a minute


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = save_toy_tokenizer(tmp_path_factory.mktemp("toy"))
    port = free_port()
    start_ray(
        num_cpus=4,
        object_store_memory=80 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _system_config={"worker_niceness": 0},
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        run(folder, step_s=0.06)
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def run(folder: Path, *, step_s: float) -> None:
    config = AppConfig(
        http=HttpConfig(through="proxy"),
        replicas=ReplicasConfig(min=2, max=2, num_cpus=0.5, health_period_s=1, drain_s=30),
        ingress=IngressConfig(watch_s=0.2, silence_s=5),
        applications=ApplicationsConfig(policy="none"),  # what is too much, engines refuse
    )
    engine = partial(RuleEngine, step_s=step_s, max_tokens=4096, most=MOST)
    serve.run(build_app(config, engine, folder))


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    ) as connected:
        yield connected


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def loads(url: str, name: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    found = (line.split() for line in lines if line.startswith(f"hecate_engine_{name}{{"))
    return {label: float(value) for label, value in found}


def is_idle(url: str) -> bool:
    running = loads(url, "running")
    return bool(running) and not any(running.values())


def test_answers_at_once_and_streamed_are_the_same(url: str, client: openai.OpenAI) -> None:
    ask = {"model": "toy", "messages": user("hello there €"), "n": 2}
    at_once = client.chat.completions.create(**ask)
    assert at_once.choices[0].message.content == "hello there €"
    texts = ["", ""]
    for chunk in client.chat.completions.create(**ask, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in at_once.choices]
    assert httpx.get(f"{url}/health").status_code == 200


def test_errors_of_the_engine_keep_their_shape(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="toy:other", messages=user("hello"))
    assert caught.value.body["code"] == "model_not_found"  # type: ignore[index]


def adapter(url: str, what: str, **body: str) -> int:
    return httpx.post(f"{url}/v1/{what}_lora_adapter", json=body, timeout=PATIENCE_S).status_code


def test_an_adapter_is_on_all_replicas_or_on_none(url: str, client: openai.OpenAI) -> None:
    assert adapter(url, "load", lora_name="x", lora_path="/adapters/x") == 200
    assert [model.id for model in client.models.list()] == ["toy", "toy:twin", "toy:x"]
    with contextlib.ExitStack() as streams:
        for _ in range(2 * MOST):  # as many as both replicas have places for
            stream = client.chat.completions.create(model="toy:x", messages=user(LONG), stream=True)
            next(iter(streams.enter_context(stream)))
    until(lambda: is_idle(url), "idle engines")
    assert adapter(url, "unload", lora_name="x") == 200
    for _ in range(4):
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="toy:x", messages=user("hello"))
    assert adapter(url, "unload", lora_name="x") == 404


def test_streams_fill_all_replicas_and_overload_is_refused(url: str, client: openai.OpenAI) -> None:
    with contextlib.ExitStack() as streams:
        for _ in range(2 * MOST):
            stream = client.chat.completions.create(model="toy", messages=user(LONG), stream=True)
            next(iter(streams.enter_context(stream)))
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="toy", messages=user("hello"))
        assert int(caught.value.response.headers["retry-after"]) >= 1
    until(lambda: is_idle(url), "idle engines")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_cancelled(url: str, stream: bool) -> None:
    before = sum(loads(url, "generated_tokens_total").values())
    ask = {"model": "toy", "messages": user(LONG), "stream": stream}
    with httpx.Client(timeout=PATIENCE_S) as http:
        if stream:
            with http.stream("POST", f"{url}/v1/chat/completions", json=ask) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(f"{url}/v1/chat/completions", json=ask, timeout=1)
    until(lambda: is_idle(url), "idle engines")
    assert sum(loads(url, "generated_tokens_total").values()) - before < 900  # 960 asked for


def test_an_engine_that_dies_fails_its_streams_and_is_replaced(
    url: str, client: openai.OpenAI
) -> None:
    assert adapter(url, "load", lora_name="x", lora_path="/adapters/x") == 200
    stream = iter(client.chat.completions.create(model="toy", messages=user(LONG), stream=True))
    next(stream)
    failed: list[Exception] = []
    healths: list[int] = []
    over = threading.Event()

    def crash() -> None:
        try:
            client.chat.completions.create(model="toy", messages=user(CRASH))
        except openai.APIError as error:
            failed.append(error)

    def watch() -> None:
        while not over.wait(0.05):
            healths.append(httpx.get(f"{url}/health", timeout=PATIENCE_S).status_code)

    # It kills each replica it is tried on, one after the other: that is its own fault.
    threads = [threading.Thread(target=crash), threading.Thread(target=watch)]
    for thread in threads:
        thread.start()
    try:
        with pytest.raises(openai.APIError, match="met its end|lost"):
            list(stream)
        threads[0].join(90)
        assert failed

        def answers() -> bool:
            try:
                # The one that came in its place was told of the adapter that was loaded before.
                answer = client.chat.completions.create(model="toy:x", messages=user("hello"))
            except openai.APIError:
                return False
            return answer.choices[0].message.content == "hello"

        until(answers, "an answer")
    finally:
        over.set()
        threads[1].join()
    assert 503 in healths
    until(lambda: httpx.get(f"{url}/health").status_code == 200, "health")
