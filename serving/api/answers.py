"""The one state machine of an answer, whether it is streamed or given at once.

An engine's deltas go in, pieces of choices come out. A stream shows each piece; an answer at once
is the sum of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from serving.api.tools import ToolCall, ToolReader
from serving.errors import EngineDead
from serving.request import Delta, Finish, TokenLogprobs, Usage

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Piece:
    """What one delta added to one choice. ``first``: the choice begins with it, and has those of
    the prompt's log-probabilities that were asked for."""

    index: int
    first: bool
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    first_call: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish: FinishReason | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class Whole:
    """A choice as it is in the end."""

    index: int
    text: str
    calls: tuple[ToolCall, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: FinishReason
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass
class _Choice:
    tools: ToolReader | None
    begun: bool = False
    num_calls: int = 0
    ended: bool = False
    held_logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


class Answers:
    """All choices of one HTTP request: of each of its prompts, ``n``.

    ``take`` raises ``EngineDead`` for an answer that the engine gave up.
    """

    def __init__(self, num_prompts: int, n: int, *, with_tools: bool) -> None:
        self._n = n
        self._choices = [
            _Choice(ToolReader() if with_tools else None) for _ in range(num_prompts * n)
        ]
        self._usages = [Usage(0, 0, 0)] * num_prompts

    @property
    def usage(self) -> Usage:
        """Of all prompts together."""
        return Usage(
            sum(usage.prompt for usage in self._usages),
            sum(usage.cached for usage in self._usages),
            sum(usage.generated for usage in self._usages),
        )

    def take(self, prompt_index: int, delta: Delta) -> Piece | None:
        """What ``delta`` of that prompt's request adds; None where nothing can be shown yet."""
        self._usages[prompt_index] = delta.usage
        index = prompt_index * self._n + delta.index
        choice = self._choices[index]
        assert not choice.ended, f"more of choice {index} after its end"
        if delta.finish in (Finish.FAILED, Finish.CANCELLED):
            raise EngineDead(
                "the answer was given up before its end",
                got=delta.error or "it was cancelled",
                fix="send the request again",
            )
        text, calls = delta.text, list[ToolCall]()
        last = delta.finish is not None
        if choice.tools is not None:
            text, calls = choice.tools.take(text, last=last)
        choice.held_logprobs += delta.logprobs
        choice.prompt_logprobs += delta.prompt_logprobs
        if not text and not calls and not last:
            return None
        finish: FinishReason | None = None
        if delta.finish is not None:
            choice.ended = True
            finish = "length" if delta.finish is Finish.LENGTH else "stop"
            if finish == "stop" and choice.num_calls + len(calls):
                finish = "tool_calls"
        piece = Piece(
            index,
            first=not choice.begun,
            text=text,
            calls=tuple(calls),
            first_call=choice.num_calls,
            logprobs=tuple(choice.held_logprobs),
            finish=finish,
            prompt_logprobs=choice.prompt_logprobs,
        )
        choice.begun, choice.prompt_logprobs = True, ()
        choice.num_calls += len(calls)
        choice.held_logprobs = []
        return piece


def whole(pieces: Iterable[Piece]) -> Iterator[Whole]:
    """The choices that ``pieces``, all of them, add up to, in the order of their index."""
    by_index: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_index.setdefault(piece.index, []).append(piece)
    for index, parts in sorted(by_index.items()):
        finish = parts[-1].finish
        assert finish is not None, f"choice {index} has no end"
        yield Whole(
            index,
            "".join(part.text for part in parts),
            tuple(call for part in parts for call in part.calls),
            tuple(each for part in parts for each in part.logprobs),
            finish,
            parts[0].prompt_logprobs,
        )


def best(choices: Iterable[Whole], *, of: int, keep: int) -> list[Whole]:
    """Of each prompt's ``of`` choices the ``keep`` likeliest, by the mean log-probability of their
    tokens, numbered anew; as they are where all are kept."""
    all_choices = list(choices)
    if keep == of:
        return all_choices
    kept: list[Whole] = []
    for begin in range(0, len(all_choices), of):
        kept += sorted(all_choices[begin : begin + of], key=_mean_logprob, reverse=True)[:keep]
    return [replace(choice, index=index) for index, choice in enumerate(kept)]


def _mean_logprob(choice: Whole) -> float:
    if not choice.logprobs:
        return -math.inf
    return sum(each.logprob for each in choice.logprobs) / len(choice.logprobs)
