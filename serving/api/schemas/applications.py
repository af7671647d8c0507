"""What is told of applications beside their requests; the names are those of the tags."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class InstanceBody(BaseModel):
    """``POST /v1/applications/end``: an instance ends. ``class`` and ``id``: which."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    application: str = Field(alias="class", max_length=128)
    id: str = Field(min_length=1, max_length=128)


class UnitBody(InstanceBody):
    """``POST /v1/applications/units``: a unit that runs elsewhere begins or ends. ``run``: tells
    those of one name that go on side by side apart. ``failed``: with its end."""

    unit: str = Field(min_length=1, max_length=128)
    event: Literal["begin", "end"]
    kind: Literal["tool", "container", "model", "search"] = "tool"
    run: str = Field(default="", max_length=128)
    failed: bool = False
