"""``POST /v1/completions``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from serving.api.schemas.sampled import MAX_CHOICES, SampledBody

Token = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(max_length=4_000_000)]
Tokens = Annotated[list[Token], Field(min_length=1)]


class CompletionBody(SampledBody):
    """``prompt``: a text, tokens, or up to 64 of either; each gets ``n`` answers, the likeliest of
    ``best_of``. With ``echo`` each answer begins with its prompt, log-probabilities of whose tokens
    come too where ``logprobs`` asks for those of the answer; with ``max_tokens`` 0 there is nothing
    else. ``suffix``: clients send it empty; text to be filled in before one is refused.
    """

    prompt: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=64)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=64)]
    )
    max_tokens: int | None = Field(default=None, ge=0, le=2**31)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    suffix: str | None = Field(default=None, max_length=4_000_000)

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)
