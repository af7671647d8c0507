"""The official client against the API over HTTP, streaming and not."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from api_server import Server
from patience import until
from rule_engine import CRASH, RuleEngine, toy_tokenizer


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(RuleEngine())
    yield server
    server.stop()


@pytest.fixture
def slow() -> Iterator[Server]:
    server = Server(RuleEngine(step_s=0.02, most=1, max_tokens=4096))
    yield server
    server.stop()


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_models_are_the_base_and_its_adapters(server: Server) -> None:
    assert [model.id for model in server.client().models.list()] == ["toy", "toy:twin"]
    assert server.client().models.retrieve("toy:twin").id == "toy:twin"
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("toy:other")


def test_adapters_are_loaded_and_unloaded_by_request(server: Server) -> None:
    def post(what: str, **body: object) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/{what}_lora_adapter", json=body)

    client = server.client()
    ask = {"model": "toy:x/1", "messages": user("hello there")}
    with pytest.raises(openai.NotFoundError, match="no adapter x/1"):
        client.chat.completions.create(**ask)
    assert post("load", lora_name="x/1", lora_path="/adapters/x").status_code == 200
    assert [model.id for model in client.models.list()] == ["toy", "toy:twin", "toy:x/1"]
    model = client.models.retrieve("toy:x/1")
    assert model.parent == "toy"  # type: ignore[attr-defined]  # as vLLM says
    answer = client.chat.completions.create(**ask)
    assert answer.model == "toy:x/1" and answer.choices[0].message.content == "hello there"
    assert server.engine.seen[-1].adapter == "x/1"
    taken = post("load", lora_name="x/1", lora_path="/adapters/y", load_inplace=False)
    assert taken.status_code == 400 and taken.json()["error"]["param"] == "lora_name"
    assert post("load", lora_name="x/1").json()["error"]["param"] == "lora_path"
    assert post("unload", lora_name="x/1").status_code == 200
    gone = post("unload", lora_name="x/1")
    assert gone.status_code == 404 and gone.json()["error"]["code"] == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**ask)


def test_chat(server: Server) -> None:
    answer = server.client().chat.completions.create(model="toy", messages=user("hello there ü"))
    assert answer.object == "chat.completion" and answer.created == 1_700_000_000
    assert answer.id.startswith("chatcmpl-") and answer.model == "toy"
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content == "hello there ü"
    assert choice.finish_reason == "stop" and choice.logprobs is None
    said = len(toy_tokenizer()("hello there ü")["input_ids"])
    assert answer.usage is not None
    assert answer.usage.completion_tokens == said + 1  # and the token that ends it
    assert answer.usage.prompt_tokens == said + 3
    assert answer.usage.total_tokens == 2 * said + 4


def test_a_stream_adds_up_to_the_answer_at_once(server: Server) -> None:
    ask = {
        "model": "toy",
        "messages": user("hello there 日本 €uro how are you"),
        "n": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "max_completion_tokens": 12,
    }
    client = server.client()
    at_once = client.chat.completions.create(**ask)
    chunks = list(
        client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    *body, last = chunks
    assert last.choices == [] and last.usage == at_once.usage
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in body)
    assert len({chunk.id for chunk in chunks}) == 1
    for choice in at_once.choices:
        mine = [c.choices[0] for c in body if c.choices[0].index == choice.index]
        assert [part.delta.role for part in mine] == ["assistant"] + [None] * (len(mine) - 1)
        assert "".join(part.delta.content or "" for part in mine) == choice.message.content
        ends = [part.finish_reason for part in mine]
        assert ends == [None] * (len(mine) - 1) + [choice.finish_reason]
        assert choice.finish_reason == "length"
        assert choice.logprobs is not None and choice.logprobs.content is not None
        streamed = [t for part in mine if part.logprobs for t in part.logprobs.content or []]
        assert streamed == choice.logprobs.content
        assert len(streamed) == 12
    texts = [choice.message.content or "" for choice in at_once.choices]
    assert texts[0].startswith("hello") and texts[0] != texts[1] != texts[2]


def test_logprobs_carry_bytes_and_the_likeliest_first(server: Server) -> None:
    answer = server.client().chat.completions.create(
        model="toy", messages=user("日"), logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    raw = bytes(byte for token in content[:-1] for byte in token.bytes)
    assert raw.decode() == "日"
    assert [token.logprob for token in content] == [-0.5] * len(content)
    assert [top.logprob for top in content[0].top_logprobs] == [-0.5, -1.5]
    assert content[0].top_logprobs[0].token == content[0].token


def test_completions_of_several_prompts(server: Server) -> None:
    client = server.client()
    prompts = ["hello there", "how are you"]
    ask = {"model": "toy", "prompt": prompts, "n": 2, "max_tokens": 30, "logprobs": 1}
    answer = client.completions.create(**ask)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == "hello there" and answer.choices[2].text == "how are you"
    assert answer.choices[1].text != "hello there"
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens[:-1]) == "hello there" and logprobs.tokens[-1] == "<|end|>"
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset[1] == len(logprobs.tokens[0])
    assert logprobs.top_logprobs[0] == {logprobs.tokens[0]: -0.5}
    texts = ["", "", "", ""]
    offsets: list[list[int]] = [[], [], [], []]
    for chunk in client.completions.create(**ask, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
        offsets[chunk.choices[0].index] += chunk.choices[0].logprobs.text_offset
    assert texts == [choice.text for choice in answer.choices]
    assert offsets == [choice.logprobs.text_offset for choice in answer.choices]


def test_a_completion_has_16_tokens_unless_asked(server: Server) -> None:
    text = "hello there how are you today the weather is fine " * 2
    answer = server.client().completions.create(model="toy", prompt=text)
    assert answer.usage.completion_tokens == 16 and answer.choices[0].finish_reason == "length"
    tokens = toy_tokenizer()("hello")["input_ids"]
    assert server.client().completions.create(model="toy", prompt=tokens).choices[0].text == "hello"


def test_echo_puts_the_prompt_before_each_answer(server: Server) -> None:
    client = server.client()
    ask = {"model": "toy", "prompt": ["hello there", "how are you"], "n": 2, "max_tokens": 30}
    plain = [choice.text for choice in client.completions.create(**ask).choices]
    echoed = client.completions.create(**ask, echo=True)
    prompts = [text for text in ask["prompt"] for _ in range(2)]
    wanted = [prompt + text for prompt, text in zip(prompts, plain, strict=True)]
    assert [choice.text for choice in echoed.choices] == wanted
    texts = ["", "", "", ""]
    for chunk in client.completions.create(**ask, echo=True, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == wanted
    tokens = toy_tokenizer()("日本<|end|>")["input_ids"]
    answer = client.completions.create(model="toy", prompt=tokens, echo=True, max_tokens=9)
    assert answer.choices[0].text == "日本<|end|>日本"


def test_echo_has_log_probabilities_of_the_prompt_too(server: Server) -> None:
    client = server.client()
    prompts = ["hello there", "how are you"]
    ask = {"model": "toy", "prompt": prompts, "n": 2, "max_tokens": 30, "logprobs": 2, "echo": True}
    answer = client.completions.create(**ask)
    plain = client.completions.create(**{**ask, "echo": False})
    for choice, without in zip(answer.choices, plain.choices, strict=True):
        prompt = prompts[choice.index // 2]
        size = len(toy_tokenizer()(prompt)["input_ids"])
        found, alone = choice.logprobs, without.logprobs
        assert "".join(found.tokens[:size]) == prompt
        assert found.tokens[size:] == alone.tokens
        assert found.token_logprobs == [None] + [-0.5] * (size - 1 + len(alone.tokens))
        assert found.top_logprobs[0] is None and all(
            len(top) == 2 for top in found.top_logprobs[1:]
        )
        assert found.text_offset[size:] == [len(prompt) + at for at in alone.text_offset]
        for token, at in list(zip(found.tokens, found.text_offset, strict=True))[:-1]:
            assert choice.text[at : at + len(token)] == token
    streamed: list[dict[str, list[object]]] = [{}, {}, {}, {}]
    for chunk in client.completions.create(**ask, stream=True):
        for name, values in chunk.choices[0].logprobs.model_dump().items():
            streamed[chunk.choices[0].index].setdefault(name, []).extend(values)
    assert streamed == [choice.logprobs.model_dump() for choice in answer.choices]
    best = client.completions.create(**{**ask, "n": 1}, best_of=2)
    assert best.choices[1].logprobs == answer.choices[2].logprobs


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_is_scored_without_an_answer(server: Server, stream: bool) -> None:
    client = server.client()
    ask = {"model": "toy", "prompt": "hello there", "max_tokens": 0, "logprobs": 1, "echo": True}
    if stream:
        chunks = client.completions.create(
            **ask, stream=True, stream_options={"include_usage": True}
        )
        first, last = chunks
        choice, usage = first.choices[0], last.usage
    else:
        answer = client.completions.create(**ask)
        choice, usage = answer.choices[0], answer.usage
    assert choice.text == "".join(choice.logprobs.tokens) == "hello there"
    assert choice.logprobs.token_logprobs == [None] + [-0.5] * (usage.prompt_tokens - 1)
    assert choice.finish_reason == "length" and usage.completion_tokens == 0
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="toy", prompt="hello", max_tokens=0)
    assert caught.value.param == "max_tokens"


def test_the_best_of_several_answers(server: Server) -> None:
    client = server.client()
    ask = {"model": "toy", "prompt": ["hello there", "how are you"], "max_tokens": 30}
    three = client.completions.create(**ask, n=3, logprobs=0)
    found = client.completions.create(**ask, n=2, best_of=3)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert server.engine.seen[-1].n == 3
    assert found.usage.completion_tokens == three.usage.completion_tokens
    assert all(choice.logprobs is None for choice in found.choices)
    # All of this engine's tokens are equally likely: it stays with the first ones.
    assert [choice.text for choice in found.choices] == [
        three.choices[at].text for at in (0, 1, 3, 4)
    ]
    for wrong in ({"best_of": 3, "stream": True}, {"best_of": 2, "n": 3}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**ask, **wrong)
        assert caught.value.param == "best_of"
    same = client.completions.create(**ask, n=2, best_of=2, stream=True)
    assert {chunk.choices[0].index for chunk in same} == {0, 1, 2, 3}


def test_what_completions_cannot_do_is_refused_by_name(server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().completions.create(model="toy", prompt="hello", suffix="end")
    assert caught.value.param == "suffix" and caught.value.type == "invalid_request_error"


def test_stop_strings(server: Server) -> None:
    answer = server.client().chat.completions.create(
        model="toy", messages=user("hello there, how are you"), stop=["how", "never"]
    )
    assert answer.choices[0].message.content == "hello there, "
    assert answer.choices[0].finish_reason == "stop"


def test_every_parameter_reaches_the_engine(server: Server) -> None:
    server.client().chat.completions.create(
        model="toy:twin",
        messages=user("hello"),
        n=2,
        seed=7,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=-0.2,
        logit_bias={"3": -100},
        max_tokens=9,
        stop="x",
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": {"type": "object"}},
        },
        extra_body={
            "top_k": 40,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "min_tokens": 2,
            "ignore_eos": True,
            "stop_token_ids": [5],
            "priority": -3,
        },
    )
    request = server.engine.seen[-1]
    sampling = request.sampling
    assert (request.adapter, request.n, request.priority) == ("twin", 2, -3)
    assert (sampling.seed, sampling.temperature, sampling.top_p) == (7, 0.5, 0.9)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.1, -0.2)
    assert dict(sampling.logit_bias) == {3: -100} and sampling.max_tokens == 9
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (40, 0.05, 1.1)
    assert (sampling.min_tokens, sampling.ignore_eos, sampling.stop) == (2, True, ("x",))
    assert sampling.stop_token_ids == (5,)
    assert sampling.grammar is not None and json.loads(sampling.grammar.schema) == {
        "type": "object"
    }


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


def test_tool_calls(server: Server) -> None:
    client = server.client()
    ask = {"model": "toy", "messages": user(f"so: {CALL}{CALL}"), "tools": [TOOL]}
    (choice,) = client.chat.completions.create(**ask).choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "so:"
    calls = choice.message.tool_calls
    assert [call.function.name for call in calls] == ["f", "f"] and calls[0].id != calls[1].id
    assert [json.loads(call.function.arguments) for call in calls] == [{"a": 1}] * 2
    streamed = []
    text = ""
    for chunk in client.chat.completions.create(**ask, stream=True):
        streamed += chunk.choices[0].delta.tool_calls or []
        text += chunk.choices[0].delta.content or ""
        end = chunk.choices[0].finish_reason
    assert text == "so: " and end == "tool_calls"
    assert [call.index for call in streamed] == [0, 1]
    assert [call.function.arguments for call in streamed] == [c.function.arguments for c in calls]
    # What the client gives back reaches the template as values.
    back = [
        *user("hi"),
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": calls[0].id, "content": "5"},
        *user("thanks"),
    ]
    answer = client.chat.completions.create(model="toy", messages=back, tools=[TOOL])
    assert answer.choices[0].message.content == "thanks"
    prompt = toy_tokenizer().decode(server.engine.seen[-1].prompt)
    assert '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>' in prompt


def test_without_tools_a_call_is_text(server: Server) -> None:
    answer = server.client().chat.completions.create(model="toy", messages=user(CALL))
    assert answer.choices[0].message.content == CALL and not answer.choices[0].message.tool_calls


def test_embeddings(server: Server) -> None:
    answer = server.client().embeddings.create(model="toy", input=["hello", "there"])
    first = toy_tokenizer()("hello")["input_ids"][0]
    assert answer.data[0].embedding == [1.0 if at == first % 4 else 0.0 for at in range(4)]
    assert len(answer.data) == 2 and answer.usage.prompt_tokens >= 2


WRONG = [
    ({"temperature": 3}, 400, "temperature", None),
    ({"temperature": "1"}, 400, "temperature", None),
    ({"no_such": 1}, 400, "no_such", None),
    ({"max_tokens": 0}, 400, "max_tokens", None),
    ({"max_tokens": 4000}, 400, "max_tokens", "context_length_exceeded"),
    ({"logit_bias": {"4000": 1}}, 400, "logit_bias", None),
    ({"model": "other"}, 404, "model", "model_not_found"),
    ({"model": "toy:other"}, 404, "model", "model_not_found"),
    ({"messages": []}, 400, "messages", None),
    ({"messages": [{"role": "developer", "content": "x"}]}, 400, "messages", None),
    ({"top_logprobs": 2}, 400, "top_logprobs", None),
    ({"tool_choice": "required"}, 400, "tool_choice", None),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", None),
]


@pytest.mark.parametrize(("change", "status", "param", "code"), WRONG)
def test_errors_have_openais_shape(
    server: Server, change: dict[str, object], status: int, param: str, code: str | None
) -> None:
    ask = {"model": "toy", "messages": user("hello"), **change}
    found = httpx.post(f"{server.url}/v1/chat/completions", json=ask)
    assert found.status_code == status
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert error["message"]


def test_no_json_no_route_and_another_method(server: Server) -> None:
    post = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=b"{",
        headers={"content-type": "application/json"},
    )
    assert post.status_code == 400 and "JSON" in post.json()["error"]["message"]
    assert httpx.get(f"{server.url}/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405


def test_metrics_and_health(server: Server) -> None:
    server.client().chat.completions.create(model="toy", messages=user("hello"))
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    text = httpx.get(f"{server.url}/metrics").text
    assert 'hecate_http_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert 'hecate_engine_generated_tokens_total{replica="0"}' in text
    assert 'hecate_engine_blocks_total{replica="0"} 8.0' in text
    assert 'hecate_engine_swapped_blocks{replica="0"} 0.0' in text
    assert 'hecate_engine_swap_outs_total{replica="0"} 0.0' in text
    assert "hecate_time_to_first_token_seconds_count" in text


LONG = "hello there " * 90


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_cancelled(slow: Server, stream: bool) -> None:
    ask = {"model": "toy", "messages": user(LONG), "stream": stream, "n": 2}
    with httpx.Client(timeout=20) as client:
        if stream:
            with client.stream("POST", f"{slow.url}/v1/chat/completions", json=ask) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{slow.url}/v1/chat/completions", json=ask, timeout=0.3)
    left_at = slow.engine.load().steps_total
    until(lambda: slow.engine.cancelled, "the cancellation")
    assert slow.engine.load().steps_total - left_at <= 3
    assert slow.engine.load().running == 0


def test_overload_is_429_with_a_time_to_wait(slow: Server) -> None:
    stream = slow.client().chat.completions.create(model="toy", messages=user(LONG), stream=True)
    next(iter(stream))
    for streaming in (False, True):
        with pytest.raises(openai.RateLimitError) as caught:
            slow.client().chat.completions.create(
                model="toy", messages=user("hello"), stream=streaming
            )
        assert caught.value.response.headers["retry-after"] == "2"
        assert caught.value.body["code"] == "overloaded"
    stream.close()


def test_an_engine_that_dies_leaves_nobody_hanging() -> None:
    server = Server(RuleEngine(step_s=0.02, max_tokens=4096))
    stream = server.client().chat.completions.create(model="toy", messages=user(LONG), stream=True)
    parts = iter(stream)
    next(parts)
    with pytest.raises(openai.InternalServerError) as caught:
        server.client().chat.completions.create(model="toy", messages=user(CRASH))
    assert caught.value.status_code == 503
    with pytest.raises(openai.APIError, match="met its end"):
        list(parts)
    assert httpx.get(f"{server.url}/health").status_code == 503
    with pytest.raises(openai.InternalServerError):
        server.client().chat.completions.create(model="toy", messages=user("hello"), stream=True)
    server.stop()


def test_a_tool_that_has_to_be_called(server: Server) -> None:
    other = {"type": "function", "function": {"name": "g", "parameters": {"type": "object"}}}
    ask = {"model": "toy", "messages": user("hello"), "tools": [TOOL, other]}
    named = {"type": "function", "function": {"name": "g"}}
    for choice, names in (("required", ["f", "g"]), (named, ["g"])):
        server.client().chat.completions.create(**ask, tool_choice=choice)
        grammar = server.engine.seen[-1].sampling.grammar
        assert grammar is not None
        assert (grammar.before, grammar.after) == ("<tool_call>", "</tool_call>")
        calls = json.loads(grammar.schema)["anyOf"]
        assert [call["properties"]["name"]["const"] for call in calls] == names
    with pytest.raises(openai.BadRequestError, match="not there"):
        absent = {"type": "function", "function": {"name": "h"}}
        server.client().chat.completions.create(**ask, tool_choice=absent)
