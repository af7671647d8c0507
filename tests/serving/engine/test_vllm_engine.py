"""The engine of kind vllm in vLLM's own environment, against our native one on the same folder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest
import torch
from peft_adapters import save_adapter
from served import Answer, answer_all, engine_config, greedy, with_engine
from transformers import AutoModelForCausalLM
from vllm_environment import ENVIRONMENT, ROOT, run_bounded, vllm_python

from hecate.bench.serve.models import ServedModel, write_model
from hecate.errors import ConfigError
from serving.engine.build import build_engine
from serving.engine.protocol import Engine
from serving.request import Request

RUN_S = 480
SMALL = ServedModel(
    "small",
    "",
    "qwen3",
    {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,  # the least that vLLM's kernels for the CPU have
        "tie_word_embeddings": False,
    },
    vocab_size=512,
)
BYTES_AWAY = {token: -100.0 for token in range(257)}
PROMPT = tuple(260 + (7 * i) % 250 for i in range(300))


def test_without_the_package_the_error_says_so(tmp_path: Path) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here")
    config = engine_config(tmp_path).model_copy(update={"kind": "vllm"})
    with pytest.raises(ConfigError, match="needs the package vllm"):
        build_engine(config)


@pytest.mark.slow
def test_it_keeps_the_contract_and_answers_as_ours_does(tmp_path: Path) -> None:
    python = vllm_python()
    folder = write_model(SMALL, tmp_path, context=512, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        expected_PV = torch.log_softmax(model(torch.tensor([PROMPT[:50]])).logits[0], dim=-1)
    adapter = save_adapter(tmp_path / "adapter", model, rank=8, scale=1.0)
    output = run_bounded(
        [python, str(Path(__file__).parent / "vllm_answers.py"), str(folder), str(adapter)],
        RUN_S,
        {
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "VLLM_CACHE_ROOT": str(ENVIRONMENT / "cache"),
            "VLLM_CONFIG_ROOT": str(ENVIRONMENT / "config"),
        },
    )
    found = json.loads(next(line for line in output.splitlines() if line.startswith('{"facts"')))
    answers = {
        (name, int(index)): answer
        for name, each in found["answers"].items()
        for index, answer in each.items()
    }
    ours, adapted = with_engine(
        engine_config(folder, blocks=200), lambda engine: own_answers(engine, adapter)
    )
    for name in ("first", "second", "other tenant"):
        assert answers[name, 0]["tokens"] == ours.tokens
        assert answers[name, 0]["text"] == ours.text
    assert answers["adapted", 0]["tokens"] == adapted.tokens != ours.tokens
    assert found["adapter"] == {"rank": 8, "served": ["near"]}
    assert answers["first", 0]["deltas"] > 1  # streamed
    assert set(answers["first", 0]["top"]) == {2}
    assert answers["second", 0]["usage"]["cached"] > 0
    assert answers["other tenant", 0]["usage"]["cached"] == 0
    assert answers["adapted", 0]["usage"]["cached"] == 0
    assert len(answers["two", 1]["tokens"]) == 6
    assert found["scored"] == "InvalidRequest"
    for each in found["scores"]:
        scores = dict(enumerate(each, 1))
        assert {at: token for at, (token, _) in scores.items()} == dict(enumerate(PROMPT[1:50], 1))
        for at, (_, logprob) in scores.items():
            assert logprob == pytest.approx(expected_PV[at - 1, PROMPT[at]].item(), abs=1e-3)
    jsonschema.validate(json.loads(answers["form", 0]["text"]), {"required": ["a"]})
    assert answers["form", 0]["finish"] == ["stop"]
    assert answers["long", 0]["finish"] == ["cancelled"]
    assert all(len(answer["finish"]) == 1 for answer in answers.values())
    assert found["no adapter"] == "ModelNotFound"
    assert found["bad form"] == "InvalidRequest"
    assert found["too long"] == "ContextTooLong"
    assert found["facts"]["max_tokens"] == 512 and found["facts"]["vocab_size"] == 512
    assert found["load"]["tokens_in_flight"] == 0 and found["load"]["running"] == 0


async def own_answers(engine: Engine, adapter: Path) -> tuple[Answer, Answer]:
    """Of the model itself and of the adapter, by our own engine."""
    await engine.load_adapter("near", str(adapter))
    sampling = greedy(12, logit_bias=BYTES_AWAY)
    answers = await answer_all(
        engine,
        [Request("base", PROMPT, sampling), Request("adapted", PROMPT, sampling, adapter="near")],
    )
    return answers["base", 0], answers["adapted", 0]
