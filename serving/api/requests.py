"""From a checked body to what an engine is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from serving.api.prompts import Prompts
from serving.api.schemas import ChatBody, CompletionBody, NamedTool, SampledBody
from serving.api.tools import CLOSE, OPEN
from serving.engine.protocol import EngineFacts
from serving.errors import ContextTooLong, InvalidRequest, ModelNotFound
from serving.request import NO_LOGPROBS, Grammar, Request, Sampling

COMPLETION_TOKENS = 16  # OpenAI's default
MAX_CHOICES = 128


@dataclass(frozen=True)
class Caller:
    """Who asks, by which name the answer goes, and when it came."""

    answer_id: str
    tenant: str
    arrival_s: float


def completion_requests(
    body: CompletionBody, caller: Caller, prompts: Prompts, facts: EngineFacts
) -> list[Request]:
    """One request for each prompt of ``body``, of ``best_of`` answers. Raises ``RequestError``."""
    answers = _answers(body)
    given = [tokens_of(prompt, prompts, facts, "prompt") for prompt in body.prompts]
    if len(given) * answers > MAX_CHOICES:
        raise InvalidRequest(
            "too many choices",
            got=f"{len(given)} prompts, {answers} answers to each",
            expected=f"{MAX_CHOICES} answers at most",
            param="n" if body.best_of is None else "best_of",
        )
    logprobs = NO_LOGPROBS if body.logprobs is None else body.logprobs
    if answers > body.n:
        logprobs = max(0, logprobs)  # what the best are chosen by
    wanted = COMPLETION_TOKENS if body.max_tokens is None else max(1, body.max_tokens)
    return [
        _request(
            body,
            caller,
            facts,
            tokens,
            wanted if body.max_tokens is not None else min(wanted, room(tokens, facts)),
            logprobs,
            None,
            n=answers,
            suffix=f"-{at}",
            prompt_logprobs=body.logprobs
            if body.echo and body.logprobs is not None
            else NO_LOGPROBS,
        )
        for at, tokens in enumerate(given)
    ]


def _answers(body: CompletionBody) -> int:
    """How many answers each prompt gets. Raises ``InvalidRequest`` for what cannot be."""
    if body.suffix:
        raise InvalidRequest(
            "no text can be filled in before a suffix here",
            fix="leave suffix out",
            param="suffix",
        )
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequest(
            "nothing is asked for",
            got="max_tokens 0 without echo",
            fix="set echo, which gives the prompt back, or max_tokens",
            param="max_tokens",
        )
    answers = body.n if body.best_of is None else body.best_of
    if answers < body.n:
        raise InvalidRequest(
            "best_of is less than n", got=f"{answers} and {body.n}", param="best_of"
        )
    if answers > body.n and body.stream:
        raise InvalidRequest(
            "which answers are best is not known while they are streamed",
            got=f"best_of {answers}, n {body.n} and stream",
            fix="leave out stream, or best_of",
            param="best_of",
        )
    return answers


def chat_request(body: ChatBody, caller: Caller, prompts: Prompts, facts: EngineFacts) -> Request:
    """The one request of ``body``. Raises ``RequestError``."""
    tools = body.tools if body.tools and body.tool_choice != "none" else []
    grammar = _grammar(body)
    if body.tool_choice not in (None, "none", "auto"):
        if grammar is not None:
            raise InvalidRequest(
                "an answer cannot be a tool call and keep to response_format",
                param="response_format",
            )
        grammar = call_grammar(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest(
            "top_logprobs has no effect without logprobs",
            fix="set logprobs to true",
            param="top_logprobs",
        )
    tokens = prompts.chat(body.messages, tools)
    wanted = body.max_completion_tokens or body.max_tokens or room(tokens, facts)
    logprobs = (body.top_logprobs or 0) if body.logprobs else NO_LOGPROBS
    return _request(body, caller, facts, tokens, wanted, logprobs, grammar, n=body.n)


def call_grammar(body: ChatBody) -> Grammar:
    """An answer that calls one of the tools that ``tool_choice`` leaves."""
    called = body.tool_choice if isinstance(body.tool_choice, NamedTool) else None
    tools = [
        tool.function
        for tool in body.tools or ()
        if called is None or tool.function.name == called.function.name
    ]
    if not tools:
        raise InvalidRequest(
            "tool_choice wants a tool that is not there",
            got=called.function.name if called else "no tools",
            fix="name it in tools",
            param="tool_choice",
        )
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                "arguments": tool.parameters or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return Grammar("json", json.dumps({"anyOf": calls}), OPEN, CLOSE)


def adapter_of(model: str, facts: EngineFacts) -> str:
    """The adapter that ``base:adapter`` names, "" for the base. Raises ``ModelNotFound``."""
    if model == facts.model:
        return ""
    if model.startswith(f"{facts.model}:") and (adapter := model[len(facts.model) + 1 :]):
        return adapter
    raise no_model(model, facts)


def no_model(model: str, facts: EngineFacts) -> ModelNotFound:
    return ModelNotFound(
        f"there is no model {model} here",
        expected=f"{facts.model}, or {facts.model}:ADAPTER",
        fix="GET /v1/models lists what is served",
        param="model",
    )


def tokens_of(
    prompt: str | Sequence[int], prompts: Prompts, facts: EngineFacts, param: str
) -> tuple[int, ...]:
    """Tokens of a text, or tokens given as such, checked. Raises ``InvalidRequest``."""
    tokens = prompts.encode(prompt) if isinstance(prompt, str) else tuple(prompt)
    if not tokens:
        raise InvalidRequest("the prompt is empty", expected="one token at least", param=param)
    if max(tokens) >= facts.vocab_size:
        raise InvalidRequest(
            "a token that the model does not have",
            got=str(max(tokens)),
            expected=f"ids below {facts.vocab_size}",
            param=param,
        )
    return tokens


def room(tokens: Sequence[int], facts: EngineFacts) -> int:
    """How many tokens an answer may have. Raises ``ContextTooLong`` where none."""
    left = facts.max_tokens - len(tokens)
    if left < 1:
        raise ContextTooLong(
            "the prompt fills the model's context",
            got=f"{len(tokens)} tokens",
            expected=f"at most {facts.max_tokens} with the answer",
            fix="shorten the prompt",
            param="messages",
        )
    return left


def _request(
    body: SampledBody,
    caller: Caller,
    facts: EngineFacts,
    tokens: tuple[int, ...],
    max_tokens: int,
    logprobs: int,
    grammar: Grammar | None,
    *,
    n: int,
    suffix: str = "",
    prompt_logprobs: int = NO_LOGPROBS,
) -> Request:
    adapter = adapter_of(body.model, facts)
    if len(tokens) + max_tokens > facts.max_tokens:
        raise ContextTooLong(
            "prompt and answer do not fit the model's context",
            got=f"{len(tokens)} tokens and max_tokens {max_tokens}",
            expected=f"at most {facts.max_tokens} together",
            fix="shorten the prompt or lower max_tokens",
            param="max_tokens",
        )
    if body.min_tokens > max_tokens:
        raise InvalidRequest(
            "min_tokens is more than max_tokens",
            got=f"{body.min_tokens} and {max_tokens}",
            param="min_tokens",
        )
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options has no effect without stream", param="stream_options")
    bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    for name, ids in (("logit_bias", bias), ("stop_token_ids", body.stop_token_ids or ())):
        if beyond := [token for token in ids if not 0 <= token < facts.vocab_size]:
            raise InvalidRequest(
                f"{name} names a token that the model does not have",
                got=str(beyond[0]),
                expected=f"ids from 0 to {facts.vocab_size - 1}",
                param=name,
            )
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k),
        min_p=body.min_p,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty,
        logit_bias=MappingProxyType(bias),
        seed=body.seed,
        stop=body.stops,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
    )
    return Request(
        request_id=caller.answer_id + suffix,
        prompt=tokens,
        sampling=sampling,
        n=n,
        adapter=adapter,
        tenant=caller.tenant,
        priority=body.priority,
        arrival_s=caller.arrival_s,
    )


def _grammar(body: ChatBody) -> Grammar | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Grammar("json")
    schema = wanted.json_schema.json_schema
    return Grammar("json", json.dumps(schema) if schema is not None else "")
