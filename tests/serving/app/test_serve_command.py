"""``hecate serve`` as a user runs it: a real process, a real model, the official client."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest
from peft_adapters import EXPERTS, save_adapter
from rule_engine import TEMPLATE
from served import save_served, served_model
from transformers import AutoTokenizer

from hecate.cli.serve import serving_config
from hecate.errors import ConfigError, ModelError

CONFIGS = Path(__file__).parents[3] / "configs" / "serve"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "toy-model"
    save_served(folder, "qwen3_moe")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["local", "cluster"])
def test_shipped_configurations_load(name: str, folder: Path) -> None:
    config = serving_config(CONFIGS / f"{name}.yaml", [f"engine.model={folder}"])
    assert config.engine.model == str(folder) and config.engine.name == "toy-model"


def test_a_folder_and_overrides(folder: Path) -> None:
    config = serving_config(folder, ["http.port=81", "engine.name=mine"])
    assert (config.http.port, config.engine.name) == (81, "mine")
    with pytest.raises(ConfigError, match="did you mean http.port"):
        serving_config(folder, ["http.prt=81"])
    with pytest.raises(ModelError, match="no model"):
        serving_config(folder.parent, [])


@pytest.mark.slow
@pytest.mark.ray
def test_serve_answers_and_ends(folder: Path, tmp_path: Path) -> None:
    port = free_port()
    sets = [f"http.port={port}", "engine.memory.kv_gib=0.01", "engine.threads=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hecate", "serve", str(folder)]
        + [word for each in sets for word in ("--set", each)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("serving"):
                break
        assert lines and lines[-1].startswith("serving toy-model at http://127.0.0.1:"), lines
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=60)
        ask = {"model": "toy-model", "prompt": "the cat", "max_tokens": 12, "temperature": 0}
        at_once = client.completions.create(**ask, logprobs=2)
        assert at_once.usage is not None and at_once.usage.completion_tokens >= 1
        streamed = "".join(
            chunk.choices[0].text for chunk in client.completions.create(**ask, stream=True)
        )
        assert streamed == at_once.choices[0].text
        seeded = {**ask, "temperature": 1.0, "seed": 3, "n": 2}
        first = client.completions.create(**seeded)
        second = client.completions.create(**seeded)
        assert [one.text for one in first.choices] == [one.text for one in second.choices]
        chat = client.chat.completions.create(
            model="toy-model", messages=[{"role": "user", "content": "hello"}], max_tokens=8
        )
        assert chat.usage is not None and chat.usage.completion_tokens >= 1
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="toy-model", prompt="the cat", max_tokens=4000)
        assert caught.value.body["code"] == "context_length_exceeded"  # type: ignore[index]
        save_adapter(tmp_path / "fresh", served_model("qwen3_moe"), parameters=EXPERTS, scale=1.0)
        body = {"lora_name": "fresh", "lora_path": str(tmp_path / "fresh")}
        httpx.post(f"http://127.0.0.1:{port}/v1/load_lora_adapter", json=body).raise_for_status()
        assert [model.id for model in client.models.list()] == ["toy-model", "toy-model:fresh"]
        adapted = client.completions.create(**{**ask, "model": "toy-model:fresh"})
        assert adapted.choices[0].text != at_once.choices[0].text
        vector = client.embeddings.create(model="toy-model", input="the cat").data[0].embedding
        assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-4)
    finally:
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if process.poll() is None:
            process.kill()
        process.communicate()
    assert process.returncode == 0
