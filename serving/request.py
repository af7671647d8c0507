"""What is asked of an engine, and what comes back: values, without a model or a clock.

Text has become tokens before an engine sees it; an engine gives tokens and text back, since only
who makes tokens one by one knows where a stop string ends and a character is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Literal

NO_LOGPROBS = -1


@dataclass(frozen=True)
class Grammar:
    """What an answer has to be. ``schema``: the JSON schema, as JSON; empty for any JSON object.

    ``before`` and ``after``: text that stands around it.
    """

    kind: Literal["json"]
    schema: str = ""
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when an answer ends. OpenAI's names and meanings.

    ``temperature`` 0 takes the likeliest token. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 cut
    nothing off. Penalties and ``logit_bias`` act on logits before any of it, in this order:
    ``repetition_penalty`` (on prompt and answer, as transformers does), ``presence_penalty`` and
    ``frequency_penalty`` (on the answer), ``logit_bias``. ``seed``: the same one gives the same
    answer again, whatever else runs; None draws one. ``stop``: strings that end an answer and are
    left out of it. ``logprobs``: ``NO_LOGPROBS``, or how many of the likeliest tokens come beside
    the chosen one, with log-probabilities of the model's own distribution, before penalties and
    temperature. ``prompt_logprobs``: the same of the prompt's own tokens, which are then computed
    though a cache may have them. ``min_tokens``: until so many are there, nothing ends the answer.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int = NO_LOGPROBS
    prompt_logprobs: int = NO_LOGPROBS
    grammar: Grammar | None = None


@dataclass(frozen=True)
class Request:
    """One prompt and how it is to be answered, ``n`` times.

    ``adapter``: the name of a LoRA adapter that the engine holds, or empty for the model itself.
    ``adapter_digest``: what the name has to mean, or empty for whatever it means there.
    ``tenant``: whose request it is; no tenant ever meets what another's prompts left in a cache.
    ``priority``: lower goes first, as in vLLM; equal ones in order of ``arrival_s``.
    """

    request_id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    n: int = 1
    adapter: str = ""
    adapter_digest: str = ""
    tenant: str = ""
    priority: int = 0
    arrival_s: float = 0.0


class Finish(Enum):
    """Why an answer ended; the values are OpenAI's, but for ``CANCELLED`` and ``FAILED``."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True)
class TokenLogprobs:
    """A token that was chosen, or given, and the likeliest at its place, the likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of a request so far. ``cached``: of the prompt, those that were not computed again."""

    prompt: int
    cached: int
    generated: int


@dataclass(frozen=True)
class Delta:
    """What one step added to one answer.

    ``index``: which of the ``n``. ``text``: may be empty while a character or a possible stop
    string is not whole; what is held back comes with a later delta. ``finish``: set on the last
    delta of an answer, and on no other. ``usage``: of the whole request, on every delta. ``error``:
    what ``FAILED`` means, for the client. ``prompt_logprobs``: where they were asked for, on the
    first delta of each answer: of all tokens of the prompt but the first, which follows from none.
    """

    request_id: str
    index: int
    tokens: tuple[int, ...]
    text: str
    usage: Usage
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish: Finish | None = None
    error: str = ""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
