"""From text to an answer: train, export, fine-tune with LoRA, serve, load adapters, ask.

One server for all of it, as a user runs it: to start one takes many seconds of imports.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import httpx
import openai
import psutil
import pytest
import torch
from jobs import TOY, set_, succeed, write_config, write_corpus
from patience import PATIENCE_S
from peft_adapters import EXPERTS, merged, save_adapter
from rule_engine import TEMPLATE
from transformers import AutoModelForCausalLM, AutoTokenizer
from wandb_files import history

from hecate.cli.app import main
from serving.client import Application, Instance

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).parents[3]
PROMPT = "how many stones are"
TOKENS = 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base``, what a run exported, and ``runs/sft-lora/adapter``."""
    folder = tmp_path_factory.mktemp("acceptance")
    write_corpus(folder / "corpus")
    write_config(folder / "toy.yaml", TOY)
    succeed("train", "toy.yaml", cwd=folder, ranks=2)
    succeed("export", "runs/toy", "base", cwd=folder)
    chats = folder / "chats"
    chats.mkdir()
    for name, first in (("train", 0), ("test", 40)):
        records = [
            {"question": f"how many stones are {n} and {n}", "answer": f"they are {2 * n}"}
            for n in range(first, first + 40)
        ]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (chats / f"{name}.jsonl").write_text(lines)
    sets = set_(
        model__path=folder / "base",
        data__path=chats,
        data__cache=folder / "cache",
        data__sequence_tokens=64,
        data__held_out=0.5,
        data__chat__template=ROOT / "configs" / "chat" / "plain.jinja",
        lora__rank=4,
        train__steps=6,
        train__batch_sequences=4,
        train__eval_every=0,
        logging__sinks="[jsonl]",
    )
    config = ROOT / "configs" / "train" / "sft-lora.yaml"
    succeed("train", config, *sets, cwd=folder, ranks=2)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "base")
    return folder


@pytest.fixture(scope="module")
def url(trained: Path) -> Iterator[str]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    words = set_(
        http__port=port,
        engine__memory__kv_gib=0.01,
        engine__threads=1,
        engine__lora__slots=2,
        engine__scheduling__max_sequences=2,
        wandb__mode="offline",
        wandb__every_s=0.5,
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "hecate", "serve", "base", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=trained,
    )
    try:
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if line.startswith("serving base at"):
                break
        assert said and said[-1].startswith("serving base at"), said
        started = psutil.Process(server.pid).children(recursive=True)
        commands = [" ".join(process.cmdline()) for process in started]
        assert any("ingress" in command for command in commands)
        assert not [command for command in commands if "ProxyActor" in command]  # at port 8000
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 0
    (figures,) = trained.glob("runs/serve/wandb/offline-run-*/*.wandb")
    rows = history(figures)
    assert any(row["replicas/all"] == 1 for row in rows)
    assert any(row.get("tokens_per_s/all", 0) > 0 for row in rows)
    assert any(name.startswith("ttft_s/") for row in rows for name in row)


def expected(trained: Path, *, adapted: bool) -> str:
    """What transformers, with PEFT, answers to the prompt."""
    model = AutoModelForCausalLM.from_pretrained(trained / "base", dtype=torch.float32)
    if adapted:
        model = merged(model, trained / "runs" / "sft-lora" / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(trained / "base")
    inputs = tokenizer(PROMPT, return_tensors="pt")
    given = inputs["input_ids"].shape[1]
    made = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, given:]
    text: str = tokenizer.decode(made, skip_special_tokens=True)
    return text


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=PATIENCE_S) as connected:
        yield connected


@contextmanager
def loaded(url: str, name: str, folder: Path) -> Iterator[None]:
    """While it lasts there is an adapter of that name."""
    body = {"lora_name": name, "lora_path": str(folder)}
    httpx.post(f"{url}/v1/load_lora_adapter", json=body, timeout=PATIENCE_S).raise_for_status()
    yield
    body = {"lora_name": name}
    httpx.post(f"{url}/v1/unload_lora_adapter", json=body, timeout=PATIENCE_S).raise_for_status()


def test_what_was_trained_is_what_answers(trained: Path, url: str, client: openai.OpenAI) -> None:
    ask = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    with loaded(url, "stones", trained / "runs" / "sft-lora" / "adapter"):
        assert [model.id for model in client.models.list()] == ["base", "base:stones"]
        answers = {
            name: client.completions.create(model=name, **ask).choices[0].text
            for name in ("base", "base:stones")
        }
    assert answers["base"] == expected(trained, adapted=False)
    assert answers["base:stones"] == expected(trained, adapted=True)
    assert answers["base"] != answers["base:stones"], "the adapter has learnt something"


def test_whatever_is_asked_is_answered(
    trained: Path, url: str, client: openai.OpenAI, tmp_path: Path
) -> None:
    ask = {"model": "base", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
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
        model="base", messages=[{"role": "user", "content": "hello"}], max_tokens=8
    )
    assert chat.usage is not None and chat.usage.completion_tokens >= 1
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="base", prompt=PROMPT, max_tokens=4000)
    assert caught.value.body["code"] == "context_length_exceeded"  # type: ignore[index]
    model = AutoModelForCausalLM.from_pretrained(trained / "base", dtype=torch.float32)
    fresh = save_adapter(tmp_path / "fresh", model, parameters=EXPERTS, scale=1.0)
    with loaded(url, "fresh", fresh):
        assert [model.id for model in client.models.list()] == ["base", "base:fresh"]
        adapted = client.completions.create(**{**ask, "model": "base:fresh"})
        assert adapted.choices[0].text != at_once.choices[0].text
    vector = client.embeddings.create(model="base", input=PROMPT).data[0].embedding
    assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-4)


async def crowd_and_singles(url: str) -> list[str]:
    """Who was answered in which order: five instances of few tokens, that come while one of many
    requests has both places of the engine."""
    ended: list[str] = []
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=PATIENCE_S) as own:
        crowd, single = Application(own, "crowd"), Application(own, "single")

        @single.tool(kind="search")
        async def look() -> int:
            await asyncio.sleep(0.01)
            return len(ended)

        async def ask(run: Instance[openai.AsyncOpenAI], max_tokens: int) -> None:
            asked = {"prompt": PROMPT, "max_tokens": max_tokens, "extra_body": {"ignore_eos": True}}
            await run.completions.create(model="base", unit="answer", **asked)
            ended.append(run.name)

        async with crowd.instance("crowd") as many:
            asking = [asyncio.ensure_future(ask(many, 45)) for _ in range(80)]
            while len(ended) < 6:
                await asyncio.sleep(0.01)
            for number in range(5):
                async with single.instance(f"single {number}", deadline_s=60) as one:
                    await ask(one, 3)
                    assert await look() >= 6
            await asyncio.gather(*asking)
    return ended


def test_applications_take_turns_and_the_engine_keeps_to_them(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = asyncio.run(crowd_and_singles(url))
    assert len(ended) == 85
    assert ended.index("single 4") < 70, "who comes with little does not wait for the crowd"
    metrics = httpx.get(f"{url}/metrics").text.splitlines()
    (preempted,) = (line for line in metrics if line.startswith("hecate_engine_preemptions_total{"))
    assert float(preempted.split()[1]) >= 1
    told = httpx.get(f"{url}/v1/applications").json()
    classes = {each["class"]: each for each in told["classes"]}
    assert classes["crowd"]["units"][0]["calls"]["most"] == 80
    assert classes["single"]["instances"] == 5
    assert {unit["unit"]: unit["kind"] for unit in classes["single"]["units"]} == {
        "answer": "llm",
        "look": "search",
    }
    assert classes["crowd"]["device_s"]["mean"] > classes["single"]["device_s"]["mean"] > 0
    assert main(["apps", url]) == 0
    assert "single: 5 instances" in capsys.readouterr().out


def test_the_example_of_applications_runs_as_it_is_written(url: str) -> None:
    """But for the address, the model's name, and answers that its short context has room for."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("### Applications\n")[2].partition("\n### ")[0]
    lines = [line for line in section.splitlines() if line.startswith("    ") or not line]
    code = dedent("\n".join(lines)).partition("hecate apps")[0]
    for written, here in (
        ("http://127.0.0.1:8000", url),
        ('model="demo"', 'model="base"'),
        ("max_tokens=64", "max_tokens=16"),
    ):
        assert written in code
        code = code.replace(written, here)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    told = httpx.get(f"{url}/v1/applications").json()
    (coder,) = (each for each in told["classes"] if each["class"] == "coder")
    assert coder["instances"] == 3
    units = {unit["unit"]: unit for unit in coder["units"]}
    assert set(units) == {"write", "compiles"}
    assert units["write"]["runs"] == units["compiles"]["runs"] >= 3
    assert units["compiles"]["kind"] == "tool"
