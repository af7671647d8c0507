"""The app while it is updated, and its keys."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from patience import PATIENCE_S, until
from rule_engine import RuleEngine, save_toy_tokenizer

ray = pytest.importorskip("ray")
from ray import serve  # noqa: E402

from hecate.ray_start import start_ray  # noqa: E402
from serving.api import ApiConfig  # noqa: E402
from serving.app import AppConfig, build_app  # noqa: E402
from serving.app.config import HttpConfig, IngressConfig, ReplicasConfig  # noqa: E402
from serving.app.launch import free_http  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow]

KEY = "a key"
WORDS = "hello there " * 30  # 120 tokens


class App:
    """The app as it runs, and the means to change it."""

    def __init__(self, folder: Path) -> None:
        self._folder = save_toy_tokenizer(folder)
        self._keys = folder / "keys.yaml"
        digest = sha256(KEY.encode()).hexdigest()
        tenants = [{"name": "ann", "sha256": [digest]}]
        self._keys.write_text(yaml.safe_dump({"tenants": tenants}), encoding="utf-8")
        self.port = free_http(HttpConfig(port=0)).port
        self.url = f"http://127.0.0.1:{self.port}"

    def run(self, *, step_s: float) -> None:
        config = AppConfig(
            http=HttpConfig(port=self.port, through="proxy"),
            api=ApiConfig(keys_file=str(self._keys)),
            replicas=ReplicasConfig(
                min=2,
                max=2,
                num_cpus=0.1,
                health_period_s=1,
                drain_s=120,
            ),
            ingress=IngressConfig(watch_s=0.2, silence_s=20),
        )
        engine = partial(RuleEngine, step_s=step_s, max_tokens=4096, most=64)
        serve.run(build_app(config, engine, self._folder))

    def stream(self) -> Iterator[str]:
        """Pieces of one long answer."""
        with openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE_S
        ) as client:
            messages: list[Any] = [{"role": "user", "content": WORDS}]
            for chunk in client.chat.completions.create(
                model="toy", messages=messages, stream=True
            ):
                yield chunk.choices[0].delta.content or ""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    start_ray(
        num_cpus=4,
        object_store_memory=80 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _system_config={"worker_niceness": 0},
    )
    try:
        running = App(tmp_path_factory.mktemp("toy"))
        serve.start(http_options={"host": "127.0.0.1", "port": running.port})
        running.run(step_s=0.05)
        yield running
    finally:
        serve.shutdown()
        ray.shutdown()


class Client(threading.Thread):
    """Reads one answer to its end."""

    def __init__(self, app: App) -> None:
        super().__init__(daemon=True)
        self._app = app
        self.text = ""
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            for piece in self._app.stream():
                self.text += piece
        except openai.OpenAIError as error:
            self.error = error

    def end(self) -> None:
        self.join(120)
        assert not self.is_alive(), "a client hangs"


def test_a_key_of_the_file_is_asked_for(app: App) -> None:
    assert httpx.get(f"{app.url}/v1/models").status_code == 401
    right = {"authorization": f"Bearer {KEY}"}
    assert httpx.get(f"{app.url}/v1/models", headers=right).status_code == 200
    assert httpx.get(f"{app.url}/health").status_code == 200


def test_an_update_drops_nothing(app: App) -> None:
    early = [Client(app) for _ in range(4)]
    until(lambda: all(client.text for client in early), "the first pieces")
    updating = threading.Thread(target=partial(app.run, step_s=0.04))
    updating.start()
    later: list[Client] = []
    while updating.is_alive():
        later.append(Client(app))
        time.sleep(1.0)
    updating.join()
    for client in (*early, *later):
        client.end()
        assert client.error is None
        assert client.text == WORDS
    assert later
