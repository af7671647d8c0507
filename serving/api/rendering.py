"""Pieces and whole choices as the JSON that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serving.api.answers import Piece, Whole
from serving.api.tools import ToolCall
from serving.request import TokenLogprobs, Usage

Json = dict[str, Any]
TokenText = Callable[[int], tuple[str, bytes]]


@dataclass(frozen=True)
class Head:
    """What is the same in every chunk. ``logprobs``: whether the client asked for them."""

    answer_id: str
    created: int
    model: str
    logprobs: bool
    token_text: TokenText


def usage_json(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.generated,
        "total_tokens": usage.prompt + usage.generated,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


class ChatRendering:
    """``chat.completion`` and ``chat.completion.chunk``."""

    def __init__(self, head: Head) -> None:
        self._head = head

    def chunk(self, piece: Piece) -> Json:
        delta: Json = {}
        if piece.first:
            delta["role"] = "assistant"
        if piece.text or (piece.first and not piece.calls):
            delta["content"] = piece.text
        if piece.calls:
            delta["tool_calls"] = [
                {"index": at, **_call(self._head, piece.index, at, call)}
                for at, call in enumerate(piece.calls, piece.first_call)
            ]
        choice = {
            "index": piece.index,
            "delta": delta,
            "logprobs": self._logprobs(piece.logprobs),
            "finish_reason": piece.finish,
        }
        return self._around("chat.completion.chunk", [choice])

    def usage_chunk(self, usage: Usage) -> Json:
        return {**self._around("chat.completion.chunk", []), "usage": usage_json(usage)}

    def whole(self, choices: Iterable[Whole], usage: Usage) -> Json:
        return {
            **self._around("chat.completion", [self._choice(choice) for choice in choices]),
            "usage": usage_json(usage),
        }

    def _choice(self, choice: Whole) -> Json:
        message: Json = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.calls:
            message["content"] = choice.text.strip() or None
            message["tool_calls"] = [
                _call(self._head, choice.index, at, call) for at, call in enumerate(choice.calls)
            ]
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.finish,
        }

    def _logprobs(self, tokens: Sequence[TokenLogprobs]) -> Json | None:
        if not self._head.logprobs:
            return None
        return {
            "content": [
                {
                    **self._token(each.token, each.logprob),
                    "top_logprobs": [self._token(*pair) for pair in each.top],
                }
                for each in tokens
            ],
            "refusal": None,
        }

    def _token(self, token: int, logprob: float) -> Json:
        text, raw = self._head.token_text(token)
        return {"token": text, "bytes": list(raw), "logprob": logprob}

    def _around(self, kind: str, choices: list[Json]) -> Json:
        return _around(self._head, kind, choices)


@dataclass(frozen=True)
class Echo:
    """A prompt that its answers begin with."""

    text: str
    tokens: Sequence[int]


class CompletionRendering:
    """``text_completion``, in one or in chunks; offsets are characters of its text.

    ``echoed``: the prompts, which their ``n`` choices begin with, with their tokens'
    log-probabilities where the answer's are given; none where none do. ``alone``: nothing else is
    wanted, and the one token that an engine makes all the same is left out.
    """

    def __init__(
        self, head: Head, echoed: Sequence[Echo] = (), n: int = 1, *, alone: bool = False
    ) -> None:
        self._head = head
        self._echoed = echoed
        self._n = n
        self._alone = alone
        self._offsets: dict[int, int] = {}

    def chunk(self, piece: Piece) -> Json:
        choice = self._choice(piece, first=piece.first)
        return _around(self._head, "text_completion", [choice])

    def usage_chunk(self, usage: Usage) -> Json:
        return {**_around(self._head, "text_completion", []), "usage": self._usage(usage)}

    def whole(self, choices: Iterable[Whole], usage: Usage) -> Json:
        rendered = [self._choice(one, first=True) for one in choices]
        return {
            **_around(self._head, "text_completion", rendered),
            "usage": self._usage(usage),
        }

    def _usage(self, usage: Usage) -> Json:
        return usage_json(replace(usage, generated=0) if self._alone else usage)

    def _choice(self, one: Piece | Whole, *, first: bool) -> Json:
        echo = self._echoed[one.index // self._n] if self._echoed and first else None
        if self._alone:
            one = replace(one, text="", logprobs=(), finish="length")
        return {
            "index": one.index,
            "text": echo.text + one.text if echo else one.text,
            "logprobs": self._logprobs(one, echo) if self._head.logprobs else None,
            "finish_reason": one.finish,
        }

    def _logprobs(self, one: Piece | Whole, echo: Echo | None) -> Json:
        listed = _Listed(self._head.token_text, self._offsets.get(one.index, 0))
        if echo is not None:
            listed.begin(echo.tokens[0], echo.text)
            for each in one.prompt_logprobs:
                listed.add(each)
            listed.offset = len(echo.text)
        for each in one.logprobs:
            listed.add(each)
        self._offsets[one.index] = listed.offset
        return listed.json


class _Listed:
    """Tokens one after the other, from a character of the text on."""

    def __init__(self, token_text: TokenText, offset: int) -> None:
        self.json: Json = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        self.offset = offset
        self._token_text = token_text

    def begin(self, token: int, prompt: str) -> None:
        """The first token of ``prompt``, which follows from none; what begins every prompt of some
        models is no part of its text."""
        text = self._token_text(token)[0]
        self._list(text, None, None)
        if not prompt.startswith(text):
            self.offset -= len(text)

    def add(self, one: TokenLogprobs) -> None:
        top = {self._token_text(token)[0]: logprob for token, logprob in one.top}
        self._list(self._token_text(one.token)[0], one.logprob, top)

    def _list(self, text: str, logprob: float | None, top: Json | None) -> None:
        values = (text, logprob, top, self.offset)
        for name, value in zip(self.json, values, strict=True):
            self.json[name].append(value)
        self.offset += len(text)


Rendering = ChatRendering | CompletionRendering


def _around(head: Head, kind: str, choices: list[Json]) -> Json:
    return {
        "id": head.answer_id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "choices": choices,
    }


def _call(head: Head, index: int, at: int, call: ToolCall) -> Json:
    return {
        "id": f"call_{head.answer_id.rpartition('-')[2]}_{index}_{at}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
