"""The app on a real Ray cluster of this machine, through the official client."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from rule_engine import CRASH, RuleEngine, save_toy_tokenizer

ray = pytest.importorskip("ray")
from ray import serve  # noqa: E402

from serving.app import AppConfig, build_app  # noqa: E402
from serving.app.config import IngressConfig, ReplicasConfig  # noqa: E402

pytestmark = pytest.mark.ray

LONG = "hello there " * 60


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = save_toy_tokenizer(tmp_path_factory.mktemp("toy"))
    port = free_port()
    ray.init(
        num_cpus=4,
        object_store_memory=80 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
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
        replicas=ReplicasConfig(min=2, max=2, num_cpus=0.5, health_period_s=1, drain_s=30),
        ingress=IngressConfig(watch_s=0.2, silence_s=5),
    )
    engine = partial(RuleEngine, step_s=step_s, max_tokens=4096, most=8)
    serve.run(build_app(config, engine, folder))


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def loads(url: str, name: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    found = (line.split() for line in lines if line.startswith(f"hecate_engine_{name}{{"))
    return {label: float(value) for label, value in found}


def wait_until(true: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def engines() -> list[Any]:
    """Ray's actors of the engine deployment, alive."""
    from ray.util.state import list_actors

    return [
        actor
        for actor in list_actors(filters=[("state", "=", "ALIVE")], detail=True)
        if "engine" in actor.class_name.lower() or "#engine#" in (actor.name or "")
    ]


def test_answers_at_once_and_streamed_are_the_same(url: str) -> None:
    ask = {"model": "toy", "messages": user("hello there €"), "n": 2}
    at_once = client(url).chat.completions.create(**ask)
    assert at_once.choices[0].message.content == "hello there €"
    texts = ["", ""]
    for chunk in client(url).chat.completions.create(**ask, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in at_once.choices]
    assert httpx.get(f"{url}/health").status_code == 200


def test_errors_of_the_engine_keep_their_shape(url: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client(url).chat.completions.create(model="toy:other", messages=user("hello"))
    assert caught.value.body["code"] == "model_not_found"  # type: ignore[index]


def test_many_streams_are_spread_and_overload_is_refused(url: str) -> None:
    streams = []
    for _ in range(16):  # 8 for each of the two, if they are spread evenly
        streams.append(
            client(url).chat.completions.create(model="toy", messages=user(LONG), stream=True)
        )
        next(iter(streams[-1]))
    with pytest.raises(openai.RateLimitError) as caught:
        client(url).chat.completions.create(model="toy", messages=user("hello"))
    assert int(caught.value.response.headers["retry-after"]) >= 1
    for stream in streams:
        stream.close()
    wait_until(lambda: (found := loads(url, "running")) and not any(found.values()))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_cancelled(url: str, stream: bool) -> None:
    ask = {"model": "toy", "messages": user(LONG), "stream": stream}
    with httpx.Client(timeout=30) as http:
        if stream:
            with http.stream("POST", f"{url}/v1/chat/completions", json=ask) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(f"{url}/v1/chat/completions", json=ask, timeout=0.3)
    made = sum(loads(url, "generated_tokens_total").values())
    wait_until(lambda: (found := loads(url, "running")) and not any(found.values()))
    assert sum(loads(url, "generated_tokens_total").values()) - made < 150  # of 240 that it asked


def test_an_engine_that_dies_fails_its_streams_and_is_replaced(url: str) -> None:
    stream = iter(
        client(url).chat.completions.create(model="toy", messages=user(LONG), stream=True)
    )
    next(stream)
    failed: list[Exception] = []

    def crash() -> None:
        try:
            client(url).chat.completions.create(model="toy", messages=user(CRASH))
        except openai.APIError as error:
            failed.append(error)

    # It kills each replica it is tried on, one after the other: that is its own fault.
    thread = threading.Thread(target=crash)
    thread.start()
    with pytest.raises(openai.APIError, match="met its end|lost"):
        list(stream)
    thread.join(60)
    assert failed
    wait_until(lambda: httpx.get(f"{url}/health").status_code == 503)

    def answers() -> bool:
        try:
            answer = client(url).chat.completions.create(model="toy", messages=user("hello"))
        except openai.APIError:
            return False
        return answer.choices[0].message.content == "hello"

    wait_until(answers, 60)
