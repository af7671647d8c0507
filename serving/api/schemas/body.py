"""The base of every request body."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Body(BaseModel):
    """Closed to unknown fields, and strict: text is no number, and infinity is none either.

    ``user`` and ``metadata`` say something to OpenAI and nothing here; clients send them anyway.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=512)
    user: str | None = Field(default=None, max_length=512)
    metadata: dict[str, Any] | None = None
