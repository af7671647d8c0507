"""What completions and chat have in common: how an answer is chosen, and when it ends."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from serving.api.schemas.body import Body

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_SEED = 2**63 - 1

Stop = Annotated[str, Field(min_length=1, max_length=1024)]
TokenText = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(BaseModel):
    """``include_usage``: one more chunk, before the end, with the usage and no choice."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    include_usage: bool = False


class SampledBody(Body):
    """OpenAI's parameters, and beside them those of vLLM that have none of OpenAI's.

    ``top_k`` 0 or -1 cuts nothing off. ``priority``: lower goes first. ``application``: tags, which
    are never a reason to refuse a request.
    """

    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(default=None, ge=1, le=2**31)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1, le=2**31)
    min_p: float = Field(default=0.0, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    logit_bias: dict[TokenText, Bias] | None = Field(default=None, max_length=1024)
    seed: int | None = Field(default=None, ge=-MAX_SEED, le=MAX_SEED)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: list[int] | None = Field(default=None, max_length=1024)
    ignore_eos: bool = False
    min_tokens: int = Field(default=0, ge=0, le=2**31)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    application: Any = None
    priority: int = Field(default=0, ge=-(2**31), le=2**31)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage
