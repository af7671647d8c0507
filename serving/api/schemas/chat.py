"""``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.api.schemas.sampled import SampledBody


class _Part(BaseModel):
    """``extra``: clients give answers back with fields of their own (``refusal``, ``audio``)."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class TextPart(_Part):
    type: Literal["text"]
    text: str = Field(max_length=4_000_000)


class CalledFunction(_Part):
    name: str
    arguments: str


class ToolCall(_Part):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(_Part):
    """One turn; content in parts is joined. Only text is understood."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class Function(_Part):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Part):
    type: Literal["function"]
    function: Function


class NamedFunction(_Part):
    name: str


class NamedTool(_Part):
    """The one tool that is to be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(_Part):
    name: str
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class PlainFormat(_Part):
    type: Literal["text", "json_object"]


class SchemaFormat(_Part):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class ChatBody(SampledBody):
    """``tools`` reach the model through its chat template, whose calls are then read back.

    ``max_completion_tokens`` is OpenAI's newer name of ``max_tokens``.
    """

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: Annotated[PlainFormat | SchemaFormat | None, Field(discriminator="type")] = (
        None
    )
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
