"""Whether a request can be answered by an engine at all: by what it asks, not by how busy it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from serving.engine.protocol import EngineFacts
from serving.errors import ContextTooLong, InvalidRequest
from serving.request import NO_LOGPROBS, Request, Sampling


def check_prompt(prompt: Sequence[int], facts: EngineFacts) -> None:
    """Raise ``InvalidRequest`` unless there is a token, and the model knows each."""
    if not prompt:
        raise InvalidRequest("the prompt is empty", expected="at least one token", param="prompt")
    for worst in (min(prompt), max(prompt)):
        if not 0 <= worst < facts.vocab_size:
            raise InvalidRequest(
                "the prompt has a token that the model does not know",
                got=f"{worst}",
                expected=f"ids from 0 to {facts.vocab_size - 1}",
                param="prompt",
            )
    if len(prompt) > facts.max_tokens:
        raise ContextTooLong(
            "the prompt is longer than the context",
            got=f"{len(prompt)} tokens",
            expected=f"at most {facts.max_tokens}",
            fix="shorten the prompt",
            param="prompt",
        )


def check_request(
    request: Request, facts: EngineFacts, *, max_sequences: int, memory_tokens: int, taken: bool
) -> None:
    """Raise ``InvalidRequest`` for the first field of ``request`` that cannot be.

    ``memory_tokens``: how many tokens of one sequence the memory holds. ``taken``: whether another
    request under way has the same id.
    """
    sampling = request.sampling
    check_prompt(request.prompt, facts)
    if taken:
        raise InvalidRequest("a request of this id is under way", got=request.request_id)
    if not 1 <= request.n <= max_sequences:
        raise InvalidRequest(
            "n does not fit",
            got=f"{request.n}",
            expected=f"1 to {max_sequences}, as many as run at once here",
            param="n",
        )
    for name, value, expected, fine in _ranges(sampling, facts):
        if not fine:
            raise InvalidRequest(
                f"{name} is out of range", got=f"{value}", expected=expected, param=name
            )
    whole = len(request.prompt) + sampling.max_tokens
    limit = min(facts.max_tokens, memory_tokens)
    if whole > limit:
        raise ContextTooLong(
            "the prompt and the answer are longer than the context",
            got=f"{len(request.prompt)} tokens and max_tokens {sampling.max_tokens}",
            expected=f"at most {limit} together",
            fix="shorten the prompt or lower max_tokens",
            param="max_tokens" if len(request.prompt) < limit else "prompt",
        )


def _ranges(sampling: Sampling, facts: EngineFacts) -> Iterator[tuple[str, object, str, bool]]:
    s = sampling
    yield "max_tokens", s.max_tokens, "at least 1", s.max_tokens >= 1
    yield "temperature", s.temperature, "0 or more", 0 <= s.temperature < float("inf")
    yield "top_p", s.top_p, "above 0, at most 1", 0 < s.top_p <= 1
    yield "top_k", s.top_k, "0 or more", s.top_k >= 0
    yield "min_p", s.min_p, "0 to 1", 0 <= s.min_p <= 1
    for name in ("presence_penalty", "frequency_penalty"):
        yield name, getattr(s, name), "-2 to 2", -2 <= getattr(s, name) <= 2
    penalty = s.repetition_penalty
    yield "repetition_penalty", penalty, "above 0", 0 < penalty < float("inf")
    yield "min_tokens", s.min_tokens, "0 to max_tokens", 0 <= s.min_tokens <= s.max_tokens
    yield "stop", s.stop, "no empty string", all(s.stop)
    most = min(20, facts.vocab_size)
    for name in ("logprobs", "prompt_logprobs"):
        count = getattr(s, name)
        yield name, count, f"0 to {most}", NO_LOGPROBS <= count <= most
    known = all(0 <= token < facts.vocab_size for token in s.logit_bias)
    finite = all(-1000 <= bias <= 1000 for bias in s.logit_bias.values())
    yield "logit_bias", dict(s.logit_bias), "known token ids, -1000 to 1000", known and finite
    known = all(0 <= token < facts.vocab_size for token in s.stop_token_ids)
    yield "stop_token_ids", s.stop_token_ids, "known token ids", known
    late = s.grammar is None or not s.min_tokens
    yield "min_tokens", s.min_tokens, "0 where response_format says when an answer ends", late
