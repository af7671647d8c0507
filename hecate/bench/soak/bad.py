"""Requests that are to be refused, each with the status that says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SERVED = "soak"
_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_USER = [{"role": "user", "content": "hello"}]
_GOOD = {"model": SERVED, "prompt": [5, 6, 7], "max_tokens": 4}
MAX_BODY_BYTES = 100_000


@dataclass(frozen=True)
class Bad:
    """``key``: None for one that is good."""

    what: str
    status: int
    body: Mapping[str, Any] | bytes
    path: str = _COMPLETIONS
    method: str = "POST"
    key: str | None = None


BAD = (
    Bad("no JSON", 400, b'{"model": '),
    Bad("no UTF-8", 400, b'{"model": "\xff\xfe"}'),
    Bad("nothing", 400, b""),
    Bad("a list", 400, b"[1, 2]"),
    Bad("unknown field", 400, {**_GOOD, "temprature": 0}),
    Bad("text for a number", 400, {**_GOOD, "max_tokens": "4"}),
    Bad("no prompt", 400, {"model": SERVED}),
    Bad("empty prompt", 400, {**_GOOD, "prompt": ""}),
    Bad("unknown token", 400, {**_GOOD, "prompt": [5, 99_999]}),
    Bad("too long", 400, {**_GOOD, "prompt": [5] * 2000}),
    Bad("too long together", 400, {**_GOOD, "max_tokens": 4000}),
    Bad("n too large", 400, {**_GOOD, "n": 100}),
    Bad("temperature", 400, {**_GOOD, "temperature": -1}),
    Bad("stop", 400, {**_GOOD, "stop": ["a"] * 50}),
    Bad("min_tokens", 400, {**_GOOD, "min_tokens": 9}),
    Bad("logit_bias", 400, {**_GOOD, "logit_bias": {"99999": 1}}),
    Bad(
        "schema",
        400,
        {
            "model": SERVED,
            "messages": _USER,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
            },
        },
        _CHAT,
    ),
    Bad("no messages", 400, {"model": SERVED, "messages": []}, _CHAT),
    Bad("unknown role", 400, {"model": SERVED, "messages": [{"role": "x", "content": "y"}]}, _CHAT),
    Bad(
        "tools without a template",
        400,
        {
            "model": SERVED,
            "messages": _USER,
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
        _CHAT,
    ),
    Bad("unknown model", 404, {**_GOOD, "model": "other"}),
    Bad("unknown adapter", 404, {**_GOOD, "model": f"{SERVED}:never-loaded"}),
    Bad("unknown path", 404, _GOOD, "/v1/complete"),
    Bad("wrong method", 405, b"", _COMPLETIONS, "GET"),
    Bad("no key", 401, _GOOD, key=""),
    Bad("wrong key", 401, _GOOD, key="not-a-key"),
    Bad("too large", 413, b'{"model": "' + b"x" * MAX_BODY_BYTES + b'"}'),
    Bad(
        "no such folder", 400, {"lora_name": "x", "lora_path": "/nowhere"}, "/v1/load_lora_adapter"
    ),
    Bad("unload what is not there", 404, {"lora_name": "never-loaded"}, "/v1/unload_lora_adapter"),
)
