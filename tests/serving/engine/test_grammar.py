"""Answers that have to be of a form are, whatever the model would rather say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from served import Answers, byte_tokenizer, engine_config, greedy, save_served, served

from serving.engine.grammar import Grammars, allowed_tokens
from serving.errors import InvalidRequest
from serving.request import Finish, Grammar, Request, Sampling

PROMPT = tuple(range(20, 30))
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["colour", "size"],
    "additionalProperties": False,
}
FORM = Grammar("json", json.dumps(SCHEMA))
# A toy would rather write blanks than anything: it has no room for them.
NO_BLANKS = {
    token: -100.0 for token in range(2, 300) if not byte_tokenizer().decode([token]).strip()
}


def formed(seed: int, max_tokens: int = 100, **more: Any) -> Sampling:
    return Sampling(max_tokens, **{"seed": seed, "grammar": FORM, "logit_bias": NO_BLANKS, **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy")
    save_served(path, "qwen3_moe")
    return path


def texts(answers: Answers) -> Iterator[tuple[str, Finish | None]]:
    return ((answer.text, answer.finish) for answer in answers.values())


def test_every_answer_parses_and_keeps_to_its_schema(folder: Path) -> None:
    requests = [
        *(Request(f"hot-{seed}", PROMPT, formed(seed, temperature=1.5), n=2) for seed in range(6)),
        Request("greedy", PROMPT, formed(0, temperature=0.0, ignore_eos=True)),
    ]
    answers = served(engine_config(folder, blocks=300), *requests)
    found = set()
    for text, finish in texts(answers):
        jsonschema.validate(json.loads(text), SCHEMA)
        assert finish is Finish.STOP
        found.add(text)
    assert len(answers) == 13 and len(found) > 5  # chance still decides what the form leaves open


def test_text_around_it(folder: Path) -> None:
    form = Grammar("json", json.dumps({"const": {"name": "f"}}), '<call a="1">', "</call>")
    (answer,) = served(
        engine_config(folder), Request("r", PROMPT, formed(1, grammar=form))
    ).values()
    inner = answer.text.removeprefix('<call a="1">').removesuffix("</call>")
    assert json.loads(inner) == {"name": "f"} and len(inner) == len(answer.text) - 19


def test_neighbours_are_not_touched(folder: Path) -> None:
    plain = Request("plain", PROMPT, Sampling(24, seed=5, ignore_eos=True))
    other = Request("other", PROMPT, formed(6))
    alone = served(engine_config(folder), plain)
    both = served(engine_config(folder, blocks=200), other, plain)
    assert both["plain", 0].tokens == alone["plain", 0].tokens


def test_a_form_outlives_preemption(folder: Path) -> None:
    requests = [Request(f"r{seed}", PROMPT, formed(seed)) for seed in range(4)]
    roomy = served(engine_config(folder, blocks=200, prefix="none"), *requests)
    tight = served(engine_config(folder, blocks=32, prefix="none"), *requests)
    assert list(texts(tight)) == list(texts(roomy))


@pytest.mark.parametrize(
    "schema",
    ['{"type": "frob"}', '{"$ref": "http://nowhere/x"}', '{"type": "string", "pattern": "(?=a)"}'],
)
def test_what_cannot_be_kept_to_is_refused(folder: Path, schema: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        served(engine_config(folder), Request("r", PROMPT, greedy(grammar=Grammar("json", schema))))
    assert caught.value.param == "response_format"


def test_an_end_that_two_decide_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="min_tokens"):
        served(engine_config(folder), Request("r", PROMPT, greedy(grammar=FORM, min_tokens=3)))


def test_bits_are_tokens_also_beyond_the_tokenizer() -> None:
    tokenizer = byte_tokenizer()
    grammars = Grammars(
        tokenizer, 333, (1,)
    )  # a model with more rows than the tokenizer has tokens
    state = grammars.state(Grammar("json", '{"type": "boolean"}'))
    (allowed_V,) = allowed_tokens([state], 333)
    assert allowed_V.shape == (333,) and allowed_V.dtype == torch.bool
    starts = {tokenizer.decode([token])[:1] for token in allowed_V.nonzero()[:, 0].tolist()}
    assert starts == {"t", "f"}
    for letter in "true":
        assert not state.ended
        state.advance(tokenizer.convert_tokens_to_ids(letter))
    assert state.ended
