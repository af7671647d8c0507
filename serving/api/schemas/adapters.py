"""``POST /v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``, as vLLM names their fields."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _AdapterBody(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    lora_name: str = Field(min_length=1, max_length=200)


class LoadAdapterBody(_AdapterBody):
    """``lora_path``: a folder on the machines that serve. ``load_inplace`` false: not where the
    name has a meaning already."""

    lora_path: str = Field(min_length=1, max_length=4096)
    load_inplace: bool = True


class UnloadAdapterBody(_AdapterBody):
    """By name."""
