"""Pieces and whole choices as the JSON that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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


class CompletionRendering:
    """``text_completion``, in one or in chunks; offsets are characters of the answer.

    ``echoed``: texts of the prompts, which their ``n`` choices begin with; none where none do.
    """

    def __init__(self, head: Head, echoed: Sequence[str] = (), n: int = 1) -> None:
        self._head = head
        self._echoed = echoed
        self._n = n
        self._offsets: dict[int, int] = {}

    def chunk(self, piece: Piece) -> Json:
        text = self._echo(piece.index) + piece.text if piece.first else piece.text
        choice = self._choice(piece.index, text, piece.logprobs, piece.finish)
        return _around(self._head, "text_completion", [choice])

    def usage_chunk(self, usage: Usage) -> Json:
        return {**_around(self._head, "text_completion", []), "usage": usage_json(usage)}

    def whole(self, choices: Iterable[Whole], usage: Usage) -> Json:
        rendered = [
            self._choice(one.index, self._echo(one.index) + one.text, one.logprobs, one.finish)
            for one in choices
        ]
        return {
            **_around(self._head, "text_completion", rendered),
            "usage": usage_json(usage),
        }

    def _echo(self, index: int) -> str:
        return self._echoed[index // self._n] if self._echoed else ""

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenLogprobs], finish: str | None
    ) -> Json:
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, logprobs) if self._head.logprobs else None,
            "finish_reason": finish,
        }

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprobs]) -> Json:
        text = self._head.token_text
        offset = self._offsets.get(index, 0)
        offsets = []
        for each in tokens:
            offsets.append(offset)
            offset += len(text(each.token)[0])
        self._offsets[index] = offset
        return {
            "tokens": [text(each.token)[0] for each in tokens],
            "token_logprobs": [each.logprob for each in tokens],
            "top_logprobs": [
                {text(token)[0]: logprob for token, logprob in each.top} for each in tokens
            ],
            "text_offset": offsets,
        }


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
