"""Rank-aware placement on a real Ray cluster: requests go where their adapter is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from patience import PATIENCE_S, until
from rule_engine import RuleEngine, save_toy_tokenizer

ray = pytest.importorskip("ray")
from ray import serve  # noqa: E402

from hecate.ray_start import start_ray  # noqa: E402
from serving.app import AppConfig, build_app  # noqa: E402
from serving.app.config import HttpConfig, IngressConfig, ReplicasConfig  # noqa: E402
from serving.app.launch import free_http  # noqa: E402
from serving.lora.profile import Fits, Profile, write_profile  # noqa: E402
from serving.lora.step_model import StepModel  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LONG = "hello there " * 240  # 960 tokens, a minute
# A load takes as long as a hundred tokens, whatever else runs.
STEPS = StepModel(0.01, 0.0, 0.0, 0.0, 0.0, 0.0, load_base_s=1.0, load_rank_s=0.0)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("toy")
    port = free_http(HttpConfig(port=0)).port
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
        serve.run(app(save_toy_tokenizer(folder), folder / "steps.json"))
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def app(folder: Path, steps: Path) -> Any:
    fits = Fits(decode=1.0, prefill=1.0, load=1.0, read=1.0)
    write_profile(
        Profile(model="toy", digest="", device="", dtype="", threads=1, steps=STEPS, r2=fits),
        steps,
    )
    config = AppConfig(
        http=HttpConfig(through="proxy"),
        replicas=ReplicasConfig(
            min=2, max=2, num_cpus=0.5, health_period_s=1, drain_s=30, step_model=str(steps)
        ),
        ingress=IngressConfig(watch_s=0.2, silence_s=5),
    )
    return build_app(config, partial(RuleEngine, step_s=0.06, max_tokens=4096), folder)


class Replicas:
    """The app's two, by the tokens of prompts that each got."""

    def __init__(self, url: str) -> None:
        self._url = url

    def prompts(self) -> dict[str, float]:
        name = "hecate_engine_prompt_tokens_total{"
        lines = httpx.get(f"{self._url}/metrics").text.splitlines()
        return {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith(name)}

    def take(self, send: Callable[[], int]) -> set[str]:
        """Those that got what ``send`` sends, so many tokens."""
        before = self.prompts()
        tokens = send()

        def after() -> dict[str, float]:
            now = self.prompts()
            return now if sum(now.values()) == sum(before.values()) + tokens else {}

        return {name for name, got in until(after, "its prompts").items() if got > before[name]}


def test_requests_go_to_the_replica_that_has_their_adapter(url: str) -> None:
    replicas = Replicas(url)
    until(lambda: len(replicas.prompts()) == 2, "two replicas")
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)
        )

        def answers(model: str) -> int:
            """Four, one after the other; tokens of their prompts."""
            tokens = 0
            for _ in range(4):
                answer = client.completions.create(model=model, prompt="hello", max_tokens=2)
                assert answer.usage is not None
                tokens += answer.usage.prompt_tokens
            return tokens

        home = replicas.take(lambda: answers("toy:twin"))
        assert len(home) == 1
        # It gets busy with the adapter: by tokens in flight the other one were it.
        stream = client.completions.create(
            model="toy:twin", prompt=LONG, max_tokens=960, stream=True
        )
        next(iter(stack.enter_context(stream)))
        assert replicas.take(lambda: answers("toy:twin")) == home
        others = replicas.take(lambda: answers("toy"))
        assert len(others) == 1 and others != home
